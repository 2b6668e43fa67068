"""A model's predictions of next tokens, and what another's lose against them."""

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning.data import TokenBatch


class TokenLosses(NamedTuple):
    """What is lost at each scored position, in nats."""

    ce: Float[Tensor, "n"]
    """-log q(next token)."""
    kl: Float[Tensor, "n"]
    """sum p (log p - log q)."""


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

    def lost(self, logits: Float[Tensor, "batch ctx vocab"] | None = None) -> TokenLosses:
        """Returns what predictions q with these logits lose; without logits, the untouched model's own."""
        log_q = self.log_p if logits is None else self.log_probabilities(logits)
        ce = -log_q.gather(1, self.targets.unsqueeze(1)).squeeze(1)
        if logits is None:
            return TokenLosses(ce, ce.new_zeros(ce.shape))
        # where p underflows to 0 its term is 0, so the product is taken with the exponential, not with a logarithm of 0
        return TokenLosses(ce, (self.log_p.exp() * (self.log_p - log_q)).sum(-1))
