"""Operations on rows of a weight and of its gradient.

Those of an optimizer's step are in place, without a temporary of the weight's size.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.ops import _numba as numba
from dictionary_learning.ops._backend import forced_backend
from dictionary_learning.ops._triton import usable

_BLOCK_BYTES = 1 << 22  # rows handled at once on a CPU: they stay in the cache from one operation to the next
_LEAST_COMPILED = 1 << 18  # entries of a weight; with fewer, compiled loops would save no time


def row_kernels(weight: Tensor, unit_rows: bool) -> ModuleType | None:
    """Returns the module of kernels for a step of Adam by rows, if one can be used."""
    if weight.dtype != torch.float32 or not weight.is_contiguous():
        return None
    if weight.numel() >= _LEAST_COMPILED and numba.usable(weight.device.type):
        from dictionary_learning.ops._numba import rows

        return rows
    if forced_backend() not in (None, "triton") or not usable(weight.device.type):
        return None
    from dictionary_learning.ops._triton import adam

    return adam if adam.fits(weight, unit_rows) else None


def remove_parallel_part_(gradient: Tensor, weight: Tensor) -> None:
    """Removes the part of each gradient row along the weight's row, which has unit norm."""
    for g, w in _blocks(gradient, weight):
        g.addcmul_(w, (g * w).sum(1, keepdim=True), value=-1)


def normalize_rows_(weight: Tensor) -> None:
    """Scales each row to unit norm; a row of zeros stays."""
    for (w,) in _blocks(weight):
        w.div_(torch.linalg.vector_norm(w, dim=1, keepdim=True).clamp_min_(torch.finfo(w.dtype).tiny))


def take_rows(weight: Float[Tensor, "rows *dim"], indices: Int[Tensor, "n"]) -> Float[Tensor, "n *dim"]:
    """Returns rows of a weight, none twice; the gradient is written to its place, not added up."""
    return cast(Tensor, _TakeRows.apply(weight, indices))


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.n_rows = weight.shape[0]
        return weight.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (indices,) = ctx.saved_tensors
        return grad.new_zeros(ctx.n_rows, *grad.shape[1:]).index_copy_(0, indices, grad), None


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    row_bytes = tensors[0][0].numel() * tensors[0].itemsize if len(tensors[0]) else 1
    on_cpu = tensors[0].device.type == "cpu"
    n_rows = max(1, _BLOCK_BYTES // max(row_bytes, 1)) if on_cpu else max(len(tensors[0]), 1)
    return zip(*(tensor.split(n_rows) for tensor in tensors), strict=True)
