"""What a model loses when its activations are replaced."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning.data import TokenBatch
from dictionary_learning.evaluation.base import ratio
from dictionary_learning.hardware import float64


class Predictions:
    """The untouched model's predictions of a batch's next tokens, at the positions that are scored.

    A position is scored if its own token counts, and the next token, which it predicts, does too: padding and special
    tokens are neither.

    Args:
        logits: the model's output.
        tokens: the batch.
        keep: which tokens count, and are replaced when something is grafted.
    """

    def __init__(self, logits: Float[Tensor, "batch ctx vocab"], tokens: TokenBatch, keep: Bool[Tensor, "batch ctx"]):
        self.scored = (keep[:, :-1] & keep[:, 1:]).to(logits.device)
        self.targets: Int[Tensor, "n"] = tokens.input_ids[:, 1:].to(logits.device)[self.scored]
        self.log_p = self.log_probabilities(logits)

    def log_probabilities(self, logits: Float[Tensor, "batch ctx vocab"]) -> Float[Tensor, "n vocab"]:
        """Returns log-probabilities at the scored positions, in float32."""
        return logits[:, :-1][self.scored].float().log_softmax(-1)


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
        log_q = predictions.log_p if logits is None else predictions.log_probabilities(logits)
        self.n += len(predictions.targets)
        self.ce_sum -= float(float64(log_q.gather(1, predictions.targets.unsqueeze(1))).sum())
        if logits is not None:
            # where p underflows to 0 its term is 0, so the product is taken with the exponential, not with a logarithm of 0
            divergence = (predictions.log_p.exp() * (predictions.log_p - log_q)).sum(-1)
            self.kl_sum += float(float64(divergence).sum())

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
