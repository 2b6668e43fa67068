"""Gradients for thresholds: the step at a threshold is treated as the integral of a narrow kernel.

With u = (z - threshold) / bandwidth and a kernel K that integrates to 1:

    d 1[z > threshold] / d threshold = -K(u) / bandwidth
    d z 1[z > threshold] / d threshold = -threshold K(u) / bandwidth

Rajamanoharan et al. 2024, https://arxiv.org/abs/2407.14435, section 3: the rectangle. The others
are those of density estimation: smoother, and the triangle and the parabola (Epanechnikov) are
twice as wide.
"""

import math
from typing import Any, Literal, cast

import torch
from torch import Tensor

KernelName = Literal["rectangle", "triangle", "gaussian", "epanechnikov"]
REACH = {"rectangle": 0.5, "triangle": 1.0, "gaussian": 4.0, "epanechnikov": 1.0}
"""The largest |u| at which a kernel is not zero; the Gaussian is cut off at 3e-4 of its height."""


def kernel(u: Tensor, name: KernelName) -> Tensor:
    """Returns K(u)."""
    if name == "rectangle":
        return (u.abs() < REACH[name]).to(u.dtype)
    if name == "triangle":
        return (1 - u.abs()).clamp_min(0)
    if name == "epanechnikov":
        return 0.75 * (1 - u.square()).clamp_min(0)
    return torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi) * (u.abs() < REACH[name])


def jump(z: Tensor, threshold: Tensor, bandwidth: float, name: KernelName, to_input: bool = False) -> Tensor:
    """Returns z where it exceeds the threshold, else 0.

    The threshold may be broadcast; the kernel's bandwidth is in units of z. With `to_input`, z gets
    the estimator's gradient too, beside that of its own value.
    """
    return cast(Tensor, _Threshold.apply(z, threshold.expand_as(z), bandwidth, name, to_input, True))


def step(z: Tensor, threshold: Tensor, bandwidth: float, name: KernelName, to_input: bool = False) -> Tensor:
    """Returns 1 where z exceeds the threshold, else 0; arguments as for `jump`."""
    return cast(Tensor, _Threshold.apply(z, threshold.expand_as(z), bandwidth, name, to_input, False))


class _Threshold(torch.autograd.Function):
    """z 1[z > threshold] if `has_value`, else 1[z > threshold]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (in the form of `torch.func`)
        z: Tensor, threshold: Tensor, bandwidth: float, name: KernelName, to_input: bool, has_value: bool
    ) -> Tensor:
        return z * (z > threshold) if has_value else (z > threshold).to(z.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        z, threshold, *ctx.options = inputs
        ctx.save_for_backward(z, threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        z, threshold = ctx.saved_tensors
        bandwidth, name, to_input, has_value = ctx.options
        near = grad * kernel((z - threshold) / bandwidth, name)
        near = near * (threshold / bandwidth) if has_value else near / bandwidth
        grad_z = grad * (z > threshold) if has_value else None
        if to_input:
            grad_z = near if grad_z is None else grad_z + near
        return grad_z, -near, None, None, None, None
