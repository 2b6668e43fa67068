"""The sparse backend as Triton kernels, for CUDA; Triton is imported when first used."""

import importlib.util
import os
from typing import ClassVar

import torch
from torch import Tensor

from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops import _pairs as torch_pairs
from dictionary_learning.ops._backend import forced_backend
from dictionary_learning.ops._columns import Columns
from dictionary_learning.ops._precision import upcast
from dictionary_learning.ops._sparse import SparseBackend

__all__ = ["IS_INSTALLED", "TRITON", "TritonBackend", "usable"]

IS_INSTALLED = importlib.util.find_spec("triton") is not None
# by cost model: 1 / 184 where rows come from memory, 1 / 132 where they come from the cache
_DENSE_FROM = 1 / 128
_on_device_of = torch.cuda.device_of
"""Triton launches on the current device, wherever the tensors are. No effect on a CPU."""


class TritonBackend(SparseBackend):
    """Triton kernels on CUDA; sums are in float32, in the same order every time.

    None waits for the device, and all shapes are known beforehand, so a step can be captured in a
    CUDA graph.
    """

    dense_from: ClassVar = {"cuda": _DENSE_FROM, "cpu": _DENSE_FROM}  # a CPU with the interpreter
    batch_on, where_on = ("cuda", "cpu"), ()
    totals = staticmethod(torch_pairs.totals)

    def __init__(self) -> None:
        self.uncertain: dict[torch.device, Tensor] = {}
        """For each device, the number of tokens whose latents were selected in bfloat16 and could
        not be shown to be those of float32."""

    def supports(self, device_type: str, dtype: torch.dtype) -> bool:
        return usable(device_type) and dtype != torch.float64

    def describe(self, device_type: str) -> str:
        if not usable(device_type):
            return f"Triton's kernels are for CUDA, and the device is {device_type}"
        share = f"where at most 1/{round(1 / _DENSE_FROM)} of the latents are kept"
        return f"{share}; selection in bfloat16, ranked again in float32"

    def select(
        self, x: Tensor, W: Tensor, b: Tensor, k: int, product: Tensor | None = None, columns: Columns | None = None
    ) -> SparseLatents:
        from dictionary_learning.ops._triton import selection

        with _on_device_of(x):
            return self._counted(*selection.top_k(x, W, b, k, product))

    def select_batch(
        self, x: Tensor, W: Tensor, b: Tensor, n: int, product: Tensor | None = None, columns: Columns | None = None
    ) -> SparseLatents:
        from dictionary_learning.ops._triton import selection

        with _on_device_of(x):
            return self._counted(*selection.batch_top_k(x, W, b, n, product))

    def pair_dots(self, x: Tensor, W: Tensor, support: Support) -> Tensor:
        from dictionary_learning.ops._triton.pairs import dots

        segments = support.segments
        with _on_device_of(x):
            products = dots(x, W, segments.tokens, segments.latents)  # (P,), in order of latent
        return torch.empty_like(products).index_copy_(0, segments.order, products).view(support.indices.shape)

    def sum_over_kept(self, values: Tensor, support: Support, W: Tensor) -> Tensor:
        from dictionary_learning.ops._triton.pairs import sums_of_short_segments

        with _on_device_of(W):
            return sums_of_short_segments(upcast(values).flatten(), support.latents, support.offsets, W)

    def sum_over_tokens(self, values: Tensor, support: Support, x: Tensor) -> Tensor:
        from dictionary_learning.ops._triton.pairs import sums_of_any_segments

        segments = support.segments
        by_latent = upcast(values).flatten()[segments.order]  # (P,)
        with _on_device_of(x):
            return sums_of_any_segments(by_latent, segments.tokens, segments.latents, segments.offsets, x)

    def _counted(self, kept: SparseLatents, uncertain: Tensor) -> SparseLatents:
        total = self.uncertain.get(uncertain.device)
        if total is None:
            total = self.uncertain[uncertain.device] = torch.zeros_like(uncertain)
        total += uncertain
        return kept


def usable(device_type: str) -> bool:
    """Returns whether Triton kernels run on a device type: CUDA, or an interpreting CPU.

    Triton's interpreter (TRITON_INTERPRET=1, and the backend forced to triton) is thousands of
    times slower: for tests.
    """
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1" and forced_backend() == "triton"
    return IS_INSTALLED and (device_type == "cuda" or is_interpreted)


TRITON = TritonBackend()
