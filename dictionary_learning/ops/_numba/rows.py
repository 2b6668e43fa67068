"""A step of Adam by rows, compiled: as `ops._triton.adam`, for a CPU."""

import numpy as np
import torch
from torch import Tensor

from dictionary_learning.ops._numba import adam
from dictionary_learning.ops._numba._threads import in_parts

_BLOCK = 1024  # entries of a row where rows are not normalized


def squared_norm(gradient: Tensor, weight: Tensor, unit_rows: bool) -> Tensor:
    """Returns the gradient's squared norm, for unit rows without the parts along the rows."""
    rows, weights = _as_rows(gradient, unit_rows), _as_rows(weight, unit_rows)
    squares = torch.empty(len(rows))
    in_parts(adam.squared_norms, len(rows), rows, weights, unit_rows, squares)
    return squares.sum(dtype=torch.float64).float()


def step_(
    weight: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    step: Tensor,
    lr: Tensor | float,
    betas: tuple[float, float],
    eps: float,
    divisor: Tensor,
    skip: Tensor,
    unit_rows: bool,
    rounded: Tensor | None = None,
) -> None:
    """Does one step of Adam in place; arguments as of `ops._triton.adam.step_`."""
    if skip:
        return
    tensors = [_as_rows(t, unit_rows) for t in (weight, gradient, exp_avg, exp_avg_sq)]
    count = float(step)
    rate, root = float(lr) / (1 - betas[0] ** count), (1 - betas[1] ** count) ** -0.5
    numbers = map(np.float32, (1 / float(divisor), rate, root, 1 - betas[0], 1 - betas[1], eps))
    in_parts(adam.step, len(tensors[0]), *tensors, *numbers, unit_rows)
    if rounded is not None:
        rounded.copy_(weight)


def _as_rows(tensor: Tensor, unit_rows: bool) -> Tensor:
    """Returns a view with rows (R, D): those that are normalized, or blocks of all entries."""
    flat = tensor.detach().float().contiguous()
    if unit_rows:
        return flat.view(len(flat), -1)
    return flat.view(-1, _BLOCK) if flat.numel() % _BLOCK == 0 else flat.view(1, -1)
