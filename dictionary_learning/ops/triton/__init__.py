"""The sparse forms' computations as Triton kernels, for CUDA; Triton itself is imported when one is first used."""

import importlib.util
import os

import torch
from torch import Tensor

from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops.dispatch import backend, backend_status
from dictionary_learning.ops.kernels import Selected
from dictionary_learning.ops.pairs import totals
from dictionary_learning.ops.precision import upcast
from dictionary_learning.ops.sparse import register_sparse_forms

_DENSE_FROM = 1 / 128
"""The share of kept latents from which on dense products are as fast (cost model: 1 / 184 where rows come from memory, 1 / 132
where they come from the cache)."""
_INSTALLED = importlib.util.find_spec("triton") is not None


class TritonKernels:
    """The computations, for tensors of any precision; sums are in float32, in the same order every time.

    None waits for the device, and all shapes are known beforehand, so a step can be captured in a CUDA graph.
    """

    def __init__(self) -> None:
        self.uncertain: dict[torch.device, Tensor] = {}
        """How many tokens' latents were kept by bfloat16 values that could not be shown to be those of float32, on each device."""

    def top_k(self, x: Tensor, W: Tensor, b: Tensor, k: int) -> Selected:
        """Returns the k largest of relu(x W^T + b) of each token."""
        from dictionary_learning.ops.triton import selection

        with _on_device_of(x):
            selected, uncertain = selection.top_k(x, W, b, k)
        self._count(uncertain)
        return selected

    def batch_top_k(self, x: Tensor, W: Tensor, b: Tensor, n_kept: int) -> Selected:
        """Returns the n_kept largest of relu(x W^T + b) of all tokens together."""
        from dictionary_learning.ops.triton import selection

        with _on_device_of(x):
            selected, uncertain = selection.batch_top_k(x, W, b, n_kept)
        self._count(uncertain)
        return selected

    def pair_dots(self, x: Tensor, W: Tensor, support: Support) -> Tensor:
        """Returns x_n . W_i of each pair (n, i), in the shape of the support's indices."""
        from dictionary_learning.ops.triton.pairs import dots

        segments = support.segments
        with _on_device_of(x):
            products = dots(x, W, segments.tokens, segments.latents)
        return torch.empty_like(products).index_copy_(0, segments.order, products).view(support.indices.shape)

    def sum_over_kept(self, values: Tensor, support: Support, W: Tensor) -> Tensor:
        """Returns for each token the sum over its pairs of value * W_i."""
        from dictionary_learning.ops.triton.pairs import sums_of_short_stretches

        with _on_device_of(W):
            return sums_of_short_stretches(upcast(values).flatten(), support.latents, support.offsets, W)

    def sum_over_tokens(self, values: Tensor, support: Support, x: Tensor) -> Tensor:
        """Returns for each latent the sum over its pairs of value * x_n."""
        from dictionary_learning.ops.triton.pairs import sums_of_any_stretches

        segments = support.segments
        sorted_values = upcast(values).flatten()[segments.order]
        with _on_device_of(x):
            return sums_of_any_stretches(sorted_values, segments.tokens, segments.latents, segments.offsets, x)

    def totals(self, values: Tensor, support: Support) -> Tensor:
        """Returns for each latent the sum over its pairs of the value."""
        return totals(values, support)

    def _count(self, uncertain: Tensor) -> None:
        known = self.uncertain.setdefault(uncertain.device, torch.zeros_like(uncertain))
        known += uncertain


_on_device_of = torch.cuda.device_of
"""Triton launches on the current device, wherever the tensors are; does nothing for tensors on a CPU."""


def usable(device: torch.device) -> bool:
    """Tells whether kernels are to run for tensors of a device: on CUDA, and elsewhere if asked for by name.

    Triton's interpreter (TRITON_INTERPRET=1) runs them on a CPU, thousands of times slower: to test them.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1" and backend() == "triton"
    return _INSTALLED and (device.type == "cuda" or interpreted)


@backend_status("triton")
def answer(device: torch.device) -> tuple[bool, str]:
    """Tells what the kernels do on a device, or why they are not used."""
    if not _INSTALLED:
        return False, "Triton is not installed (pip install triton; it comes with PyTorch for CUDA)"
    if not usable(device):
        return False, f"Triton's kernels are for CUDA, and the device is {device.type}"
    share = f"where at most 1/{round(1 / _DENSE_FROM)} of the latents are kept"
    return True, f"{share}; selection in bfloat16, ranked again in float32"


def _serves_encode(x: Tensor, W: Tensor, k: int) -> bool:
    return _served(x) and k <= _DENSE_FROM * W.shape[0]


def _serves_decode(latents: SparseLatents, W: Tensor) -> bool:
    kept = latents.support.indices.numel()
    return _served(W) and kept <= _DENSE_FROM * W.shape[0] * max(latents.support.n_tokens, 1)


def _served(tensor: Tensor) -> bool:
    return usable(tensor.device) and tensor.dtype != torch.float64


__all__ = ["KERNELS", "TritonKernels", "answer", "usable"]

KERNELS = TritonKernels()
if _INSTALLED:
    register_sparse_forms("triton", KERNELS, _serves_encode, _serves_decode)
