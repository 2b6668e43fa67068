# pyright: reportAssignmentType=false
# (a static function implements a method, so that no call lies between the two)
"""The sparse backend in plain PyTorch: for a CPU, and for CUDA without Triton."""

import torch

from dictionary_learning._hardware import bfloat16_is_fast
from dictionary_learning.ops import _pairs as pairs, _selection as selection
from dictionary_learning.ops._sparse import SparseBackend

_DENSE_FROM = {"cpu": 1 / 8, "cuda": 1 / 128}
"""The share of kept latents from which on dense products are as fast (CUDA: by cost model)."""


class TorchBackend(SparseBackend):
    """The sparse backend in plain PyTorch.

    `batch_top_k` and `encode_where` look at what they find, for which the host would have to wait
    for an accelerator: they are for the CPU only.
    """

    select = staticmethod(selection.top_k)
    select_batch = staticmethod(selection.batch_top_k)
    pair_dots = staticmethod(pairs.pair_dots)
    sum_over_kept = staticmethod(pairs.sum_over_kept)
    sum_over_tokens = staticmethod(pairs.sum_over_tokens)
    totals = staticmethod(pairs.totals)

    def __init__(self) -> None:
        super().__init__(_DENSE_FROM, batch_on=["cpu"], where_on=["cpu"])

    def supports(self, device_type: str, dtype: torch.dtype) -> bool:
        return device_type in _DENSE_FROM

    def describe(self, device_type: str) -> str:
        if device_type not in _DENSE_FROM:
            return f"made for {' and '.join(_DENSE_FROM)}"
        share = f"where at most 1/{round(1 / _DENSE_FROM[device_type])} of the latents are kept"
        if device_type != "cpu":
            return f"{share}; selection by torch.topk in float32"
        if bfloat16_is_fast("cpu"):
            return f"{share}; selection in bfloat16, whose products are faster here, ranked again in float32"
        return f"{share}; selection in float32: bfloat16 products are not faster on this CPU"
