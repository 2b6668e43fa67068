"""Means of gradients in main memory, which visit the device slice by slice for a step.

A matrix of an encoder or a decoder has two means of its own size, as large as weight and gradient
together. Vectors, and the float32 copies of low-precision weights, stay on the device.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

MEANS = ("exp_avg", "exp_avg_sq")
"""Names of the means in the state of Adam."""
_SLICE_BYTES = 1 << 28  # of a weight; the device has room for a slice of each mean


def is_kept(weight: Tensor) -> bool:
    """Returns whether the means of a weight are in main memory."""
    return weight.ndim > 1


def in_main_memory(weight: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns zeros for a mean of a weight, in memory from which an accelerator copies fast."""
    return torch.zeros(weight.shape, dtype=dtype or weight.dtype, pin_memory=weight.device.type == "cuda")


def slices(weight: Tensor) -> list[slice]:
    """Returns slices that together are all rows."""
    row_bytes = max(weight[:1].numel() * weight.itemsize, 1)
    n = max(1, _SLICE_BYTES // row_bytes)
    return [slice(start, start + n) for start in range(0, max(len(weight), 1), n)]


def lent(means: tuple[Tensor, Tensor], rows: slice, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the rows of the means as tensors on a device, and then writes them back."""
    first, second = (mean[rows].to(device, copy=True, non_blocking=True) for mean in means)
    yield first, second
    # the host waits for these copies, so that nobody reads the means before they are there
    for mean, moved in zip(means, (first, second), strict=True):
        mean[rows].copy_(moved)


def without_means(state: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """Returns the states of parameters without the means, which must not be loaded to a device."""
    return {n: {name: value for name, value in values.items() if name not in MEANS} for n, values in state.items()}
