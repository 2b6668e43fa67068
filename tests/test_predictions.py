"""What a model's predictions lose, from its logits."""

import pytest
import torch

from dictionary_learning.contexts import Predictions
from dictionary_learning.data import TokenBatch


class TestMaskedVocabulary:
    """Logits of -inf, as of a model that may not predict some tokens."""

    def losses(self, masked_p, masked_q):
        generator = torch.Generator().manual_seed(0)
        p, q = (torch.randn(1, 4, 9, generator=generator) for _ in range(2))
        p[..., masked_p], q[..., masked_q] = -torch.inf, -torch.inf
        q.requires_grad_()
        mask = torch.ones(1, 4, dtype=torch.bool)
        predictions = Predictions(p, TokenBatch(torch.tensor([[1, 2, 3, 1]]), mask), mask)
        return predictions, p, q

    @pytest.mark.parametrize(("masked_p", "masked_q"), [([0], [0]), ([0, 5], [0]), ([0], []), ([0, 4, 5], [4])])
    def test_losses_are_those_of_the_tokens_that_are_left(self, masked_p, masked_q):
        predictions, p, q = self.losses(masked_p, masked_q)
        losses = predictions.lost(q)
        left = [i for i in range(9) if i not in masked_p]
        log_p, log_q = p.log_softmax(-1)[0, :3, left], q.log_softmax(-1)[0, :3, left]
        torch.testing.assert_close(losses.kl, (log_p.exp() * (log_p - log_q)).sum(-1))
        assert losses.ce.isfinite().all()
        losses.kl.sum().backward()
        assert q.grad.isfinite().all()

    def test_the_identity_loses_nothing(self):
        predictions, p, _ = self.losses([0, 7], [])
        assert predictions.lost(p).kl.tolist() == [0, 0, 0]

    def test_what_is_impossible_only_with_the_dictionary_costs_everything(self):
        predictions, _, q = self.losses([], [4])
        assert (predictions.lost(q).kl == torch.inf).all()
