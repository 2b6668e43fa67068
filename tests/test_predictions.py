"""What a model's predictions lose, from its logits."""

import pytest
import torch

from dictionary_learning import contexts
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


@pytest.mark.parametrize("part", [9, 20, 45])
def test_parts_of_the_positions_lose_what_all_lose(monkeypatch, part):
    """Parts of one position, of two, and of five with a shorter one at the end."""
    p, q = torch.randn(3, 5, 9), torch.randn(3, 5, 9)
    keep = torch.rand(3, 5) < 0.9
    tokens = TokenBatch(torch.randint(0, 9, (3, 5)), torch.ones_like(keep))

    def losses():
        predictions = Predictions(p, tokens, keep)
        return *predictions.lost(q), *predictions.lost()

    whole = losses()
    monkeypatch.setitem(contexts._PART, "cpu", part)
    assert len(whole[0]) > 5 and all(map(torch.equal, losses(), whole))
    for changed in (p, q):
        empty = Predictions(p, tokens, torch.zeros_like(keep)).lost(changed)
        assert empty.ce.shape == empty.kl.shape == (0,)


def test_gradients_need_no_copy_of_the_logits_for_each_part(monkeypatch):
    monkeypatch.setitem(contexts._PART, "cpu", 9)
    p, q = torch.randn(1, 6, 9), torch.randn(1, 6, 9, requires_grad=True)
    mask = torch.ones(1, 6, dtype=torch.bool)
    predictions = Predictions(p, TokenBatch(torch.arange(6)[None], mask), mask)
    assert len(list(predictions._in_parts(p))) == 5 and len(list(predictions._in_parts(q))) == 1
    predictions.lost(q).kl.sum().backward()
    expected = (q.detach().softmax(-1) - p.softmax(-1))[:, :-1]  # of the divergence, by the logits
    torch.testing.assert_close(q.grad[:, :-1], expected)
