"""Adam in one pass over the rows of a weight, with gradient projection, clipping and unit rows.

One program has one row in registers: it reads weight, gradient and both means once, and writes
weight and means once. As separate operations, the same steps read and write all of them about three
times.

Letters: N entries of the weight, D columns.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_LONGEST_ROW = 16_384
_BLOCK = 1024  # entries of one program where rows are not normalized


def fits(weight: Tensor, unit_rows: bool) -> bool:
    """Returns whether a row of the weight fits into one program, where that is needed."""
    return not unit_rows or weight[0].numel() <= _LONGEST_ROW


def squared_norm(gradient: Tensor, weight: Tensor, unit_rows: bool) -> Tensor:
    """Returns the gradient's squared norm, for unit rows without the parts along the rows."""
    if not unit_rows:
        return torch.linalg.vector_norm(gradient.float()).square()
    n_rows, dim = gradient.shape[0], gradient[0].numel()
    out = torch.empty(n_rows, device=gradient.device)
    width = triton.next_power_of_2(dim)
    with torch.cuda.device_of(weight):  # Triton launches on the current device, wherever the tensors are
        _norm_kernel[(n_rows,)](
            gradient.contiguous(), weight.contiguous(), out,
            dim, width, num_warps=_warps(width),
        )  # fmt: skip
    return out.sum()


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
    """Does one step of Adam in place, on a weight in float32.

    Gradients may have any precision; they are not changed, but divided by `divisor`. `step` is the
    number of this step, from 1. Nothing changes where `skip` is 1. With `unit_rows`, gradients lose
    their parts along the rows, which are normalized afterwards. `rounded` is the same weight in
    lower precision, which is written as well. Tensors without dimensions are on the device; a rate
    that is one is read there, as by a captured CUDA graph.
    """
    copy = weight if rounded is None else rounded
    if unit_rows:
        n_rows, dim = weight.shape[0], weight[0].numel()
        width = triton.next_power_of_2(dim)
    else:
        dim = _BLOCK
        n_rows, width = triton.cdiv(weight.numel(), dim), _BLOCK
    with torch.cuda.device_of(weight):
        _adam_kernel[(n_rows,)](
            weight, gradient.contiguous(), exp_avg, exp_avg_sq, copy, step, lr, divisor, skip,
            1 - betas[0], 1 - betas[1], _log2(betas[0]), _log2(betas[1]), eps, weight.numel(), dim,
            isinstance(lr, Tensor), unit_rows, rounded is not None, width,
            num_warps=_warps(width),
        )  # fmt: skip


def _warps(width: int) -> int:
    """Returns so many warps for a row that a thread's entries stay in registers."""
    return min(max(width // 256, 4), 32)


def _log2(beta: float) -> float:
    return math.log2(beta) if beta > 0 else -float("inf")


@triton.jit
def _norm_kernel(gradient, weight, out, D, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    g = tl.load(gradient + row * D + column, mask=column < D, other=0.0).to(tl.float32)
    w = tl.load(weight + row * D + column, mask=column < D, other=0.0).to(tl.float32)
    g -= tl.sum(g * w, axis=0) * w
    tl.store(out + row, tl.sum(g * g, axis=0))


@triton.jit
def _adam_kernel(
    weight, gradient, exp_avg, exp_avg_sq, rounded, step, lr, divisor, skip, new1, new2, log_beta1, log_beta2,
    eps, N, D, READS_RATE: tl.constexpr, UNIT_ROWS: tl.constexpr, ROUNDS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    if tl.load(skip) == 0:
        column = tl.arange(0, WIDTH)
        place = tl.program_id(0).to(tl.int64) * D + column
        mask = (column < D) & (place < N)
        w = tl.load(weight + place, mask=mask, other=0.0)
        g = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
        if UNIT_ROWS:
            g -= tl.sum(g * w, axis=0) * w
        g = g / tl.load(divisor)
        count = tl.load(step)
        m = tl.load(exp_avg + place, mask=mask, other=0.0)
        v = tl.load(exp_avg_sq + place, mask=mask, other=0.0)
        m += new1 * (g - m)
        v += new2 * (g * g - v)
        # in float32, 1 - beta^t would keep few digits of a small difference
        first = (1.0 - tl.exp2(count.to(tl.float64) * log_beta1)).to(tl.float32)
        second = (1.0 - tl.exp2(count.to(tl.float64) * log_beta2)).to(tl.float32)
        rate = tl.load(lr) if READS_RATE else lr
        w -= rate / first * m / (tl.sqrt(v) / tl.sqrt(second) + eps)
        if UNIT_ROWS:
            norm = tl.sqrt(tl.sum(w * w, axis=0))
            w = w / tl.where(norm > 0, norm, 1.0)
        tl.store(weight + place, w, mask=mask)
        tl.store(exp_avg + place, m, mask=mask)
        tl.store(exp_avg_sq + place, v, mask=mask)
        if ROUNDS:
            tl.store(rounded + place, w.to(rounded.dtype.element_ty), mask=mask)
