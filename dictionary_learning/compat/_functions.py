"""Functions of dictionary-learning 0.1's trainers and its training loop."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.ops._straight_through import kernel


class RectangleFunction(torch.autograd.Function):
    """1 between -1/2 and 1/2, else 0; the gradient passes there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return kernel(x, "rectangle")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return grad * kernel(x, "rectangle")


class JumpReLUFunction(torch.autograd.Function):
    """x where it exceeds the threshold, with the threshold's gradient by a rectangle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = float(bandwidth)
        return x * (x > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, threshold = ctx.saved_tensors
        near = kernel((x - threshold) / ctx.bandwidth, "rectangle")
        of_threshold = -(threshold / ctx.bandwidth) * near * grad
        return (x > threshold) * grad, of_threshold.sum_to_size(threshold.shape), None


class StepFunction(torch.autograd.Function):
    """1 where x exceeds the threshold, with the threshold's gradient by a rectangle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(x, threshold)
        ctx.bandwidth = float(bandwidth)
        return (x > threshold).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, threshold = ctx.saved_tensors
        near = kernel((x - threshold) / ctx.bandwidth, "rectangle")
        return torch.zeros_like(x), (-near / ctx.bandwidth * grad).sum_to_size(threshold.shape), None


def apply_temperature(probabilities: Sequence[float], temperature: float) -> list[float]:
    """Returns softmax(log(probabilities) / temperature)."""
    if temperature <= 0:
        raise ConfigError(f"Got temperature={temperature}; it must be above 0.")
    return (torch.tensor(probabilities).log() / temperature).softmax(0).tolist()


@torch.no_grad()
def get_norm_factor(data: Iterable[Tensor], steps: int) -> float:
    """Returns the root mean square of the norms in some batches, which are consumed.

    `trainSAE(normalize_activations=True)` estimates it from a sample that is trained on later.
    """
    means = [x.float().square().sum(1).mean() for x in itertools.islice(iter(data), max(steps, 1))]
    if not means:
        raise DataError("Got no batch of activations. Give data that has not ended.")
    return float(torch.stack(means).mean().sqrt())
