"""Next-token predictions of a model, and the losses of a changed model against them."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning.data import TokenBatch


class TokenLosses(NamedTuple):
    """Losses at each scored position, in nats."""

    ce: Float[Tensor, "n"]
    """-log q(next token)."""
    kl: Float[Tensor, "n"]
    """sum p (log p - log q), where p is the untouched model."""


class Predictions:
    """Predictions of the untouched model at the scored positions of a batch.

    A position is scored if its own token and the next one, which it predicts, are both included:
    neither padding nor a special token is.

    Args:
        logits: output of the model.
        tokens: the batch.
        keep: the included tokens, whose activations a graft replaces.
    """

    def __init__(self, logits: Float[Tensor, "batch ctx vocab"], tokens: TokenBatch, keep: Bool[Tensor, "batch ctx"]):
        self.scored = (keep[:, :-1] & keep[:, 1:]).to(logits.device)  # (batch, ctx - 1)
        self.targets: Int[Tensor, "n"] = tokens.input_ids[:, 1:].to(logits.device)[self.scored]
        self.log_p = self.log_probabilities(logits)

    def log_probabilities(self, logits: Float[Tensor, "batch ctx vocab"]) -> Float[Tensor, "n vocab"]:
        """Returns log-probabilities at the scored positions, in float32."""
        return logits[:, :-1][self.scored].float().log_softmax(-1)

    def lost(self, logits: Float[Tensor, "batch ctx vocab"] | None = None) -> TokenLosses:
        """Returns the losses of a model q with these logits; by default of the untouched model."""
        log_q = self.log_p if logits is None else self.log_probabilities(logits)  # (n, vocab)
        ce = -log_q.gather(1, self.targets.unsqueeze(1)).squeeze(1)
        if logits is None:
            return TokenLosses(ce, ce.new_zeros(ce.shape))
        p = self.log_p.exp()
        # 0 log 0 is 0: a masked token has log p = -inf, and its log q may be -inf too
        terms = torch.where(p > 0, p * (self.log_p - log_q), 0)
        return TokenLosses(ce, terms.sum(-1))
