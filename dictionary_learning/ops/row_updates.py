"""What is done to a weight and its gradient row by row around an optimizer's step; all in place, with no temporary of their size."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.ops.dispatch import backend
from dictionary_learning.ops.triton import usable

_BLOCK_BYTES = 1 << 22
"""Rows handled at once: they stay in the cache from one operation to the next."""


def row_kernels(weight: Tensor, unit_rows: bool) -> Any:
    """Returns the module of kernels that make a whole step of Adam in one pass over the rows, where they serve; else None."""
    if backend() not in (None, "triton") or not usable(weight.device) or weight.dtype != torch.float32:
        return None
    from dictionary_learning.ops.triton import adam

    return adam if weight.is_contiguous() and adam.fits(weight, unit_rows) else None


def remove_parallel_part_(gradient: Tensor, weight: Tensor) -> None:
    """Removes from each row of the gradient its part along the row of the weight, which has unit norm."""
    for g, w in _blocks(gradient, weight):
        g.addcmul_(w, (g * w).sum(1, keepdim=True), value=-1)


def normalize_rows_(weight: Tensor) -> None:
    """Gives each row unit norm; a row of zeros stays."""
    for (w,) in _blocks(weight):
        w.div_(torch.linalg.vector_norm(w, dim=1, keepdim=True).clamp_min_(torch.finfo(w.dtype).tiny))


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    row = tensors[0][0].numel() * tensors[0].itemsize if len(tensors[0]) else 1
    on_cpu = tensors[0].device.type == "cpu"
    n_rows = max(1, _BLOCK_BYTES // max(row, 1)) if on_cpu else max(len(tensors[0]), 1)
    return zip(*(tensor.split(n_rows) for tensor in tensors), strict=True)
