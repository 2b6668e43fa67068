"""What a model loses when its activations are replaced."""

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.evaluation.base import ratio
from dictionary_learning.hardware import float64
from dictionary_learning.predictions import Predictions


class FidelityMetric:
    """Cross-entropy and divergence of a changed model, summed over scored positions, in nats.

    * `ce` = mean of -log q(next token), of the changed model q.
    * `kl` = mean of sum p (log p - log q), from the untouched model p; 0 is best.
    """

    def __init__(self) -> None:
        self.n = 0
        self.ce_sum = 0.0
        self.kl_sum = 0.0

    def update(self, predictions: Predictions, logits: Float[Tensor, "batch ctx vocab"] | None = None) -> None:
        """Takes in a batch; without logits, the untouched model itself."""
        lost = predictions.lost(logits)
        self.n += len(predictions.targets)
        self.ce_sum += float(float64(lost.ce).sum())
        self.kl_sum += float(float64(lost.kl).sum())

    def merge(self, other: "FidelityMetric") -> "FidelityMetric":
        """Adds what another has taken in; returns self."""
        self.n, self.ce_sum, self.kl_sum = self.n + other.n, self.ce_sum + other.ce_sum, self.kl_sum + other.kl_sum
        return self

    @property
    def ce(self) -> float:
        """Returns the mean cross-entropy."""
        return ratio(self.ce_sum, self.n)

    @property
    def kl(self) -> float:
        """Returns the mean divergence."""
        return ratio(self.kl_sum, self.n)


def recovered(clean: float, reconstructed: float, ablated: float) -> float:
    """Returns (ablated - reconstructed) / (ablated - clean), of mean cross-entropies: 1 is best, 0 no better than ablation."""
    return ratio(ablated - reconstructed, ablated - clean)
