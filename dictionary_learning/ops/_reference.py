"""Encoding and decoding in plain PyTorch: the definition that faster backends are compared with."""

import torch
from torch import Tensor

from dictionary_learning.latents import Latents, SparseLatents, Support, to_dense
from dictionary_learning.ops._backend import Backend, Choose, Encoder
from dictionary_learning.ops._precision import no_autocast, upcast


class ReferenceBackend(Backend):
    """Dense products and `torch.topk`, on any device and in any dtype."""

    def supports(self, device_type: str, dtype: torch.dtype) -> bool:
        return True

    def describe(self, device_type: str) -> str:
        return "dense products and torch.topk; other backends use it too where many latents are kept"

    def top_k(self, x: Tensor, encoder: Encoder, k: int) -> SparseLatents:
        values, indices = _pre_activations(x, encoder).relu().topk(k, dim=-1)  # (B, K)
        return SparseLatents(values, Support(indices, len(encoder.W)))

    def batch_top_k(self, x: Tensor, encoder: Encoder, k: int) -> SparseLatents:
        pre, n_latents = _pre_activations(x, encoder).relu(), len(encoder.W)
        with torch.no_grad():
            flat = torch.where(pre.isfinite().all(-1, keepdim=True), pre, 0.0).flatten()  # (B * F,)
            kept = flat.topk(min(k * len(x), flat.numel())).indices.sort().values
            kept = kept[flat[kept] > 0]
            tokens, latents = kept // n_latents, kept % n_latents
            offsets = torch.searchsorted(tokens, torch.arange(len(x) + 1, device=x.device))
        return SparseLatents(pre[tokens, latents], Support(latents, n_latents, offsets))

    def encode_where(self, x: Tensor, encoder: Encoder, choose: Choose) -> Latents:
        pre = _pre_activations(x, encoder)
        kept = choose(pre.detach())
        if kept.dtype == torch.bool:
            return pre  # the caller maps what was not chosen to zero, in values and gradients
        return SparseLatents(pre.gather(1, kept), Support(kept, len(encoder.W)))

    def decode(self, latents: Latents, W_dec: Tensor) -> Tensor:
        with no_autocast(W_dec):
            return to_dense(latents).to(upcast(W_dec).dtype) @ upcast(W_dec)


def _pre_activations(x: Tensor, encoder: Encoder) -> Tensor:
    with no_autocast(x):
        return torch.nn.functional.linear(encoder.centered(x), upcast(encoder.W), upcast(encoder.b))  # (B, F)


REFERENCE = ReferenceBackend()
