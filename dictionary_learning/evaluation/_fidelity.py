"""What a model loses when its activations are replaced: cross-entropy and KL."""

from jaxtyping import Float
from torch import Tensor

from dictionary_learning._hardware import float64
from dictionary_learning.contexts import Predictions
from dictionary_learning.evaluation._base import ratio


class FidelityMetric:
    """Cross-entropy and KL of a changed model q against the original model p, over scored positions, in nats.

    * `ce` = mean of -log q(next token).
    * `kl` = mean of sum p (log p - log q); 0 is best.
    """

    def __init__(self) -> None:
        self.n = 0
        self.ce_sum = 0.0
        self.kl_sum = 0.0

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
        """Returns the mean cross-entropy."""
        return ratio(self.ce_sum, self.n)

    @property
    def kl(self) -> float:
        """Returns the mean KL."""
        return ratio(self.kl_sum, self.n)


def recovered(clean: float, reconstructed: float, ablated: float) -> float:
    """Returns (ablated - reconstructed) / (ablated - clean), of mean cross-entropies: 1 is best, 0 no better than ablation."""
    return ratio(ablated - reconstructed, ablated - clean)
