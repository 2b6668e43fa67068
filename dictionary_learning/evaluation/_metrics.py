"""Metrics of dictionaries: sums over tokens, divided once at the end."""

from abc import ABC, abstractmethod
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._brief import brief
from dictionary_learning._hardware import float64
from dictionary_learning.config import Registry
from dictionary_learning.evaluation._sums import DocumentSums
from dictionary_learning.latents import Latents

M = TypeVar("M", bound="Metric")


class EvaluationBatch(NamedTuple):
    """The activations of a batch of tokens, and a dictionary's reconstruction and latents."""

    x: Float[Tensor, "batch activation_dim"]
    x_hat: Float[Tensor, "batch activation_dim"]
    latents: Latents
    groups: Int[Tensor, "batch"] | None = None
    """The group of documents that each token belongs to; None if all are of one."""

    __repr__ = brief


class Metric(ABC):
    """Accumulates sums over tokens and divides once at the end.

    All state is sums in float64. The result therefore does not depend on how tokens are batched,
    and metrics of parts of the data merge into the metric of all of it. Sums that are kept apart by
    document (`by_document`) give figures an error bar.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.by_document = DocumentSums()

    @abstractmethod
    def update(self, batch: EvaluationBatch) -> None:
        """Adds a batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Returns the values over all batches that were added."""

    def figures(self, weights: Float[Tensor, "resamples groups"] | None = None) -> dict[str, Tensor]:
        """Returns the values that have an error bar, each (resamples,): of resampled documents.

        Args:
            weights: how often each resample has each group of documents; by default one resample
                that has each once.
        """
        return {}

    def merge(self: M, other: "Metric", index: Int[Tensor, "groups"] | None = None) -> M:
        """Adds the sums of another metric of the same class; returns self.

        Args:
            other: the other metric.
            index: the group here of each group of documents there; by default they are the same.
        """
        self.merge_beside_sums(other, index)
        for name, value in other.sums.items():
            self.add(name, value)
        self.by_document.merge(other.by_document, index)
        return self

    def merge_beside_sums(  # noqa: B027  (most metrics hold nothing else)
        self, other: "Metric", index: Int[Tensor, "groups"] | None
    ) -> None:
        """Adds what another metric holds beside its sums, before these; by default nothing."""

    def add(self, name: str, value: Tensor | float) -> None:
        """Adds to one of the sums."""
        # in float32 a sum of 1e8 terms would stop growing
        value = float64(torch.as_tensor(value).detach())
        self.sums[name] = self.sums[name] + value.to(self.sums[name].device) if name in self.sums else value

    def total(self, name: str) -> float:
        """Returns one of the sums; zero if nothing was added."""
        if name in self.by_document.tables:
            return float(self.by_document.tables[name].sum())
        return float(self.sums[name]) if name in self.sums else 0.0


METRICS: Registry[type[Metric]] = Registry("metric")


class Variance:
    """The variance of activations around their mean over all tokens, and its sums by document.

    sum |x - mean x|^2 = sum |x|^2 - |sum x|^2 / n, exact enough in float64. Dictionaries that
    reconstruct the same activations share one.
    """

    def __init__(self) -> None:
        self.by_document = DocumentSums()
        self._last: tuple[Tensor | None, Tensor] | None = None

    def update(self, x: Float[Tensor, "batch activation_dim"], groups: Int[Tensor, "batch"] | None = None) -> None:
        """Adds a batch."""
        wide = float64(x)
        ones = wide.new_ones(len(x))
        self.by_document.add(groups, {"n": ones, "x": wide, "x_squared": wide.pow(2).sum(-1)})
        self._last = None

    def total(self, weights: Float[Tensor, "resamples groups"] | None = None) -> Float[Tensor, "resamples"]:
        """Returns sum |x - mean x|^2 of each resample."""
        # dictionaries of one site ask for the same, and the product with a wide table is not free
        if self._last is None or self._last[0] is not weights:
            self._last = (weights, self._total(weights))
        return self._last[1]

    def merge(self, other: "Variance", index: Int[Tensor, "groups"] | None = None) -> None:
        """Adds the sums of another."""
        self.by_document.merge(other.by_document, index)
        self._last = None

    def _total(self, weights: Tensor | None) -> Tensor:
        totals = self.by_document.totals(weights)
        return totals["x_squared"] - totals["x"].pow(2).sum(-1) / totals["n"]


@METRICS.register("reconstruction")
class ReconstructionMetric(Metric):
    """Metrics of x and x_hat over n tokens, e = x - x_hat; sums run over tokens and dimensions.

    * `fvu` = sum|e|^2 / sum|x - mean x|^2: fraction of variance unexplained, from 0, lower is
      better; the mean scores 1.
    * `frac_variance_explained` = 1 - fvu, up to 1, higher is better.
    * `mse` = sum|e|^2 / n, squared norm of the error per token; lower is better.
    * `l2_loss` = mean of |e|, the norm; lower is better.
    * `cossim` = mean of <x, x_hat> / (|x| |x_hat|), from -1 to 1, higher is better.
    * `l2_ratio` = mean of |x_hat| / |x|; 1 is best, less means shrinkage.
    * `relative_reconstruction_bias` = sum|x_hat|^2 / sum<x, x_hat>; 1 is best
      (Rajamanoharan et al. 2024, eq. 10).

    The mean of x is over all tokens, and ratios are ratios of sums, never means of batches' ratios.

    Args:
        variance: the variance of the same activations, if somebody else adds them to it.
    """

    def __init__(self, variance: Variance | None = None) -> None:
        super().__init__()
        self.variance = Variance() if variance is None else variance
        self._owns_variance = variance is None

    def update(self, batch: EvaluationBatch) -> None:
        if self._owns_variance:
            self.variance.update(batch.x, batch.groups)
        x, x_hat = float64(batch.x), float64(batch.x_hat)  # (batch, activation_dim)
        error, dot = (x - x_hat).pow(2).sum(-1), (x * x_hat).sum(-1)
        norm, norm_hat = x.norm(dim=-1), x_hat.norm(dim=-1)  # (batch,)
        tiny = torch.finfo(torch.float64).tiny
        # a token of norm 0 has no ratio; it counts as 1 where its reconstruction is 0 too
        ratios = torch.where(norm > 0, norm_hat / norm.clamp_min(tiny), (norm_hat == 0).double())
        values = {
            "n": torch.ones_like(norm),
            "error_squared": error,
            "error": error.sqrt(),
            "cosine": dot / (norm * norm_hat).clamp_min(tiny),
            "norm_ratio": ratios,
            "dot": dot,
            "x_hat_squared": x_hat.pow(2).sum(-1),
        }
        self.by_document.add(batch.groups, values)

    def figures(self, weights: Float[Tensor, "resamples groups"] | None = None) -> dict[str, Tensor]:
        if not self.by_document.tables:
            return {}
        totals = self.by_document.totals(weights)
        n, fvu = totals["n"], ratios(totals["error_squared"], self.variance.total(weights))
        return {
            "fvu": fvu,
            "frac_variance_explained": 1 - fvu,
            "mse": totals["error_squared"] / n,
            "l2_loss": totals["error"] / n,
            "cossim": totals["cosine"] / n,
            "l2_ratio": totals["norm_ratio"] / n,
            "relative_reconstruction_bias": ratios(totals["x_hat_squared"], totals["dot"]),
        }

    def compute(self) -> dict[str, float]:
        return {"n_tokens": int(self.total("n")), **{name: float(value) for name, value in self.figures().items()}}

    def merge_beside_sums(self, other: Metric, index: Int[Tensor, "groups"] | None) -> None:
        assert isinstance(other, ReconstructionMetric)
        if self._owns_variance:
            self.variance.merge(other.variance, index)


def ratios(above: Float[Tensor, "*shape"], below: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns quotients; NaN where the denominator is zero."""
    return torch.where(below != 0, above / below, float("nan"))
