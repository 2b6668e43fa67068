"""Metrics of dictionaries: sums over tokens, divided once at the end."""

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._hardware import float64
from dictionary_learning.config import Registry
from dictionary_learning.contexts import Predictions
from dictionary_learning.latents import Latents, firing_counts, nonzeros

M = TypeVar("M", bound="Metric")

_BINS_PER_DECADE = 4


class EvaluationBatch(NamedTuple):
    """The activations of a batch of tokens, and a dictionary's reconstruction and latents."""

    x: Float[Tensor, "batch activation_dim"]
    x_hat: Float[Tensor, "batch activation_dim"]
    latents: Latents


class Metric(ABC):
    """Accumulates sums over tokens and divides once at the end.

    All state is sums in float64. The result therefore does not depend on how tokens are batched,
    and metrics of parts of the data merge into the metric of all of it.
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
    """

    def update(self, batch: EvaluationBatch) -> None:
        x, x_hat = float64(batch.x), float64(batch.x_hat)  # (batch, activation_dim)
        error, dot = (x - x_hat).pow(2).sum(-1), (x * x_hat).sum(-1)
        norm, norm_hat = x.norm(dim=-1), x_hat.norm(dim=-1)  # (batch,)
        tiny = torch.finfo(torch.float64).tiny
        self.add("n", len(x))
        self.add("x", x.sum(0))
        self.add("x_squared", x.pow(2).sum())
        self.add("error_squared", error.sum())
        self.add("error", error.sqrt().sum())
        self.add("cosine", (dot / (norm * norm_hat).clamp_min(tiny)).sum())
        # a token of norm 0 has no ratio; it counts as 1 where its reconstruction is 0 too
        self.add("norm_ratio", torch.where(norm > 0, norm_hat / norm.clamp_min(tiny), (norm_hat == 0).double()).sum())
        self.add("dot", dot.sum())
        self.add("x_hat_squared", x_hat.pow(2).sum())

    def compute(self) -> dict[str, float]:
        n = self.total("n")
        if not n:
            return {"n_tokens": 0}
        # sum |x - mean x|^2 = sum |x|^2 - n |mean x|^2, exact enough in float64
        variance = self.total("x_squared") - float((self.sums["x"] / n).pow(2).sum()) * n
        fvu = ratio(self.total("error_squared"), variance)
        return {
            "n_tokens": int(n),
            "fvu": fvu,
            "frac_variance_explained": 1 - fvu,
            "mse": self.total("error_squared") / n,
            "l2_loss": self.total("error") / n,
            "cossim": self.total("cosine") / n,
            "l2_ratio": self.total("norm_ratio") / n,
            "relative_reconstruction_bias": ratio(self.total("x_hat_squared"), self.total("dot")),
        }


@METRICS.register("sparsity")
class SparsityMetric(Metric):
    """Metrics of the latents over n tokens.

    * `l0` = mean number of nonzero latents per token; lower is sparser.
    * `l1_loss` = mean over tokens of the sum of their absolute values.
    * `frac_alive` = share of latents that fired on at least one of the n tokens, from 0 to 1,
      higher is better. It grows with n: a latent that fires less often than once in n tokens cannot
      be told from a dead one.
    """

    def update(self, batch: EvaluationBatch) -> None:
        self.add("n", len(batch.x))
        self.add("absolute", float64(nonzeros(batch.latents)).abs().sum())
        self.add("firings", firing_counts(batch.latents))  # (dict_size,)

    def compute(self) -> dict[str, float]:
        n = self.total("n")
        if not n:
            return {}
        alive = int((self.sums["firings"] > 0).sum())
        return {
            "l0": float(self.sums["firings"].sum()) / n,
            "l1_loss": self.total("absolute") / n,
            "n_alive": alive,
            "frac_alive": alive / len(self.sums["firings"]),
        }

    def density(self) -> dict[str, Any]:
        """Returns a histogram over latents of log10 of the share of tokens on which each fires.

        Returns:
            `log10_edges` from 1/n, the resolution, to 1; the `counts` between them;
            `n_never_fired`, which are in no bin.
        """
        n, counts = self.total("n"), self.sums["firings"]
        # the lowest bin begins at or below 1/n, the smallest share that can be seen
        lowest = math.floor(math.log10(1 / n) * _BINS_PER_DECADE) if n > 1 else -_BINS_PER_DECADE
        edges = torch.arange(lowest, 1, dtype=torch.float64) / _BINS_PER_DECADE
        shares = (counts[counts > 0] / n).log10().cpu().clamp(edges[0], edges[-1])
        return {
            "log10_edges": edges.tolist(),
            "counts": torch.histogram(shares, edges).hist.long().tolist(),
            "n_never_fired": int((counts == 0).sum()),
        }


@dataclasses.dataclass
class FidelityMetric:
    """Losses of a changed model q against the original model p, over scored positions, in nats.

    * `ce` = mean of -log q(next token).
    * `kl` = mean of sum p (log p - log q); 0 is best.
    """

    n: int = 0
    ce_sum: float = 0.0
    kl_sum: float = 0.0

    def update(self, predictions: Predictions, logits: Float[Tensor, "batch ctx vocab"] | None = None) -> None:
        """Adds a batch; without logits, the original model itself."""
        lost = predictions.lost(logits)
        self.n += len(predictions.targets)
        self.ce_sum += float(float64(lost.ce).sum())
        self.kl_sum += float(float64(lost.kl).sum())

    def merge(self, other: "FidelityMetric") -> "FidelityMetric":
        """Adds the sums of another; returns self."""
        self.n, self.ce_sum, self.kl_sum = self.n + other.n, self.ce_sum + other.ce_sum, self.kl_sum + other.kl_sum
        return self

    @property
    def ce(self) -> float:
        """The mean cross-entropy."""
        return ratio(self.ce_sum, self.n)

    @property
    def kl(self) -> float:
        """The mean KL divergence."""
        return ratio(self.kl_sum, self.n)


def recovered(clean: float, reconstructed: float, ablated: float) -> float:
    """Returns (ablated - reconstructed) / (ablated - clean) of mean cross-entropies.

    1 is best; 0 is no better than ablation. NaN where ablation does not raise the cross-entropy,
    so that there is nothing to recover.
    """
    gap = ablated - clean
    return (ablated - reconstructed) / gap if gap > 0 else float("nan")


def ratio(numerator: float, denominator: float) -> float:
    """Returns the quotient, or NaN where the denominator is zero."""
    return numerator / denominator if denominator else float("nan")
