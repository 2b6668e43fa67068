"""What a metric is."""

from abc import ABC, abstractmethod
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.config import Registry
from dictionary_learning.hardware import float64
from dictionary_learning.latents import Latents

M = TypeVar("M", bound="Metric")


class EvaluationBatch(NamedTuple):
    """Tokens that count, and what a dictionary makes of them."""

    x: Float[Tensor, "batch activation_dim"]
    x_hat: Float[Tensor, "batch activation_dim"]
    latents: Latents


class Metric(ABC):
    """Adds up sums over tokens, and divides once at the end.

    All state is sums in float64, so the result does not depend on how tokens fall into batches, and metrics over parts of
    the data merge into the metric over all of it.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    @abstractmethod
    def update(self, batch: EvaluationBatch) -> None:
        """Takes in a batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Returns the figures over all that was taken in."""

    def merge(self: M, other: M) -> M:
        """Adds what another metric of the same kind has taken in; returns self."""
        for name, value in other.sums.items():
            self.add(name, value)
        return self

    def add(self, name: str, value: Tensor | float) -> None:
        """Adds to one of the sums."""
        value = float64(torch.as_tensor(value).detach())
        self.sums[name] = self.sums[name] + value.to(self.sums[name].device) if name in self.sums else value

    def total(self, name: str) -> float:
        """Returns one of the sums, zero if nothing was added."""
        return float(self.sums[name]) if name in self.sums else 0.0


METRICS: Registry[type[Metric]] = Registry("metric")


def ratio(numerator: float, denominator: float) -> float:
    """Returns the quotient, or NaN where nothing was counted."""
    return numerator / denominator if denominator else float("nan")
