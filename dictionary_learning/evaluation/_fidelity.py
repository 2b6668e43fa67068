"""What a model's predictions lose when its activations are replaced."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.contexts import Predictions
from dictionary_learning.evaluation._metrics import ratios
from dictionary_learning.evaluation._sums import DocumentSums


class FidelityMetric:
    """Losses of a changed model q against the original model p, over scored positions, in nats.

    * `ce` = mean of -log q(next token).
    * `kl` = mean of sum p (log p - log q); 0 is best.
    """

    def __init__(self) -> None:
        self.by_document = DocumentSums()

    def update(
        self,
        predictions: Predictions,
        logits: Float[Tensor, "batch ctx vocab"] | None = None,
        groups: Int[Tensor, "batch ctx"] | None = None,
    ) -> None:
        """Adds a batch; without logits, the original model itself.

        Args:
            predictions: those of the original model.
            logits: those of the changed model.
            groups: the group of documents of each token.
        """
        lost = predictions.lost(logits)
        scored = None if groups is None else groups[:, :-1][predictions.scored.cpu()]  # (n,)
        self.by_document.add(scored, {"n": torch.ones_like(lost.ce), "ce": lost.ce, "kl": lost.kl})

    def merge(self, other: "FidelityMetric", index: Int[Tensor, "groups"] | None = None) -> "FidelityMetric":
        """Adds the sums of another; returns self."""
        self.by_document.merge(other.by_document, index)
        return self

    def means(self, weights: Float[Tensor, "resamples groups"] | None = None) -> dict[str, Tensor]:
        """Returns `ce` and `kl`, each (resamples,); none if nothing was added."""
        totals = self.by_document.totals(weights)
        return {name: ratios(totals[name], totals["n"]) for name in ("ce", "kl") if totals}

    @property
    def n(self) -> int:
        """The number of scored positions."""
        return int(self.by_document.tables["n"].sum()) if self.by_document.tables else 0

    @property
    def ce(self) -> float:
        """The mean cross-entropy."""
        return float(self.means().get("ce", float("nan")))

    @property
    def kl(self) -> float:
        """The mean KL divergence."""
        return float(self.means().get("kl", float("nan")))


def recovered(clean: float, reconstructed: float, ablated: float) -> float:
    """Returns (ablated - reconstructed) / (ablated - clean) of mean cross-entropies.

    1 is best; 0 is no better than ablation. NaN where ablation does not raise the cross-entropy,
    so that there is nothing to recover.
    """
    gap = ablated - clean
    return (ablated - reconstructed) / gap if gap > 0 else float("nan")


def recovered_shares(
    clean: Float[Tensor, "resamples"], reconstructed: Float[Tensor, "resamples"], ablated: Float[Tensor, "resamples"]
) -> Float[Tensor, "resamples"]:
    """Returns `recovered` of each resample."""
    gap = ablated - clean
    return torch.where(gap > 0, (ablated - reconstructed) / gap, float("nan"))
