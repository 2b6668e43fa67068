"""Plain PyTorch: the meaning of each operation, which every faster form is compared with."""

import torch
from torch import Tensor

from dictionary_learning.latents import Latents, SparseLatents, Support, to_dense
from dictionary_learning.ops.chosen import Choose
from dictionary_learning.ops.dispatch import backend_status, implements
from dictionary_learning.ops.precision import no_autocast, upcast


@backend_status("reference")
def answer(device: torch.device) -> tuple[bool, str]:
    """Tells what these forms do."""
    return True, "dense products and torch.topk; also where so many latents are kept that the others do not pay"


@implements("topk_encode", "reference")
def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, center: Tensor | None) -> SparseLatents:
    values, indices = _pre_activations(x, W_enc, b_enc, center).relu().topk(k, dim=-1)
    return SparseLatents(values, Support(indices, W_enc.shape[0]))


@implements("batch_topk_encode", "reference")
def batch_topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, center: Tensor | None) -> SparseLatents:
    pre = _pre_activations(x, W_enc, b_enc, center).relu()
    with torch.no_grad():
        flat = torch.where(pre.isfinite().all(-1, keepdim=True), pre, 0.0).flatten()
        chosen = flat.topk(min(k * len(x), flat.numel())).indices.sort().values
        chosen = chosen[flat[chosen] > 0]
        tokens, latents = chosen // W_enc.shape[0], chosen % W_enc.shape[0]
        offsets = torch.searchsorted(tokens, torch.arange(len(x) + 1, device=x.device))
    return SparseLatents(pre[tokens, latents], Support(latents, W_enc.shape[0], offsets))


@implements("encode_where", "reference")
def encode_where(x: Tensor, W_enc: Tensor, b_enc: Tensor, choose: Choose, center: Tensor | None) -> Latents:
    pre = _pre_activations(x, W_enc, b_enc, center)
    wanted = choose(pre.detach())
    if wanted.dtype == torch.bool:
        return pre  # what is not chosen has neither value nor gradient in what is made of it
    return SparseLatents(pre.gather(1, wanted), Support(wanted, W_enc.shape[0]))


@implements("sparse_decode", "reference")
def sparse_decode(latents: SparseLatents, W_dec: Tensor) -> Tensor:
    with no_autocast(W_dec):
        return to_dense(latents).to(upcast(W_dec).dtype) @ upcast(W_dec)


def _pre_activations(x: Tensor, W_enc: Tensor, b_enc: Tensor, center: Tensor | None) -> Tensor:
    """Returns W_enc (x - center) + b_enc: (batch, dict_size)."""
    with no_autocast(x):
        centered = upcast(x) if center is None else upcast(x) - upcast(center)
        return torch.nn.functional.linear(centered, upcast(W_enc), upcast(b_enc))
