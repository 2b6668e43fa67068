"""The base class of metrics."""

from abc import ABC, abstractmethod
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._hardware import float64
from dictionary_learning.config import Registry
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents

M = TypeVar("M", bound="Metric")


class EvaluationBatch(NamedTuple):
    """The activations of a batch of tokens, and a dictionary's reconstruction and latents of them."""

    x: Float[Tensor, "batch activation_dim"]
    x_hat: Float[Tensor, "batch activation_dim"]
    latents: Latents


class Metric(ABC):
    """Accumulates sums over tokens and divides once at the end.

    All state is sums in float64. The result therefore does not depend on how tokens are batched, and metrics of
    parts of the data merge into the metric of all of it.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    @abstractmethod
    def update(self, batch: EvaluationBatch) -> None:
        """Adds a batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Returns the values over all batches that were added."""

    def merge(self: M, other: M) -> M:
        """Adds the sums of another metric of the same class; returns self."""
        for name, value in other.sums.items():
            self.add(name, value)
        return self

    def add(self, name: str, value: Tensor | float) -> None:
        """Adds to one of the sums."""
        # in float32 a sum of 1e8 terms would stop growing
        value = float64(torch.as_tensor(value).detach())
        self.sums[name] = self.sums[name] + value.to(self.sums[name].device) if name in self.sums else value

    def total(self, name: str) -> float:
        """Returns one of the sums; zero if nothing was added."""
        return float(self.sums[name]) if name in self.sums else 0.0


METRICS: Registry[type[Metric]] = Registry("metric")


def ratio(numerator: float, denominator: float) -> float:
    """Returns the quotient, or NaN where the denominator is zero."""
    return numerator / denominator if denominator else float("nan")


def check_finite(dictionary: Dictionary, name: str) -> None:
    """Checks that no tensor of a dictionary holds a NaN or an infinity, which would spoil every metric.

    Raises:
        ConfigError: one does; the message names the first.
    """
    for key, tensor in dictionary.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ConfigError(
                f"{name} holds a NaN or an infinity in {key}, so no metric of it means anything. The run that trained "
                "it diverged: train with a lower learning rate, or load an earlier checkpoint."
            )
