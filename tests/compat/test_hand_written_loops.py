"""Loops of older scripts: `loss` and `update` at the step they name, on weights set by hand."""

import pytest
import torch

from dictionary_learning.trainers import TRAINERS
from tests.tiny import Planted

METHODS = [name for name, trainer in TRAINERS.items() if hasattr(trainer.Config, "wiring") and name != "end_to_end"]
X = Planted(16).batch(64) + 3
SCHEDULED = {"sparsity_warmup_steps": 20, "anneal_start": 5, "anneal_end": 40, "k_anneal_steps": 30}


def trainer(name, **options):
    known = TRAINERS[name].Config.__dataclass_fields__
    given = {"k": 4, **SCHEDULED, **options}
    facts = {"steps": 50, "activation_dim": 16, "dict_size": 48, "device": "cpu", "seed": 0, "warmup_steps": 5}
    return TRAINERS[name](**facts, **{key: value for key, value in given.items() if key in known})


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_update_are_at_the_step_they_name(name):
    t = trainer(name)
    t.initialize(X)
    at, counted = {}, trainer(name)
    counted.initialize(X)

    for step in range(45):  # of one dictionary: schedules alone move on
        at[step] = counted.loss(X).total
        for part in counted.components.values():
            if hasattr(part, "_at") or hasattr(part, "of_power"):
                part._step = step + 1
    before = t.loss(X).total
    for step in (0, 3, 10, 25, 44):
        torch.testing.assert_close(t.loss(X, step=step), at[step], rtol=0, atol=0)
        torch.testing.assert_close(t.loss(X, step), at[step], rtol=0, atol=0)
        fresh = trainer(name)
        fresh.initialize(X)
        torch.testing.assert_close(fresh.update(step, X), at[step])
    assert torch.equal(t.loss(X).total, before)
    if name not in ("matching_pursuit",) and any(key in type(t).Config.__dataclass_fields__ for key in SCHEDULED):
        assert not torch.equal(at[0], at[44])


@pytest.mark.parametrize("name", METHODS)
def test_a_loop_that_goes_back_is_where_it_says(name):
    t = trainer(name)
    for step in (0, 1, 30, 2, 2):
        t.update(step, X)
    torch.testing.assert_close(t.loss(X).total, t.loss(X, step=3))
    assert t.step == 5 and t.metrics()["lr"] == pytest.approx(t.learning_rate(4))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale_encoder", [True, False])
def test_what_was_set_by_hand_stays(name, scale_encoder):
    scale_encoder = scale_encoder and name != "matching_pursuit"  # which refuses to
    plain = trainer(name, lr=0.0, scale_encoder=scale_encoder)
    plain.update(0, X)
    initial = {key: p.detach().clone() for key, p in plain.dictionary.named_parameters()}
    for key, p in plain.dictionary.named_parameters():
        t = trainer(name, lr=0.0, scale_encoder=scale_encoder)
        by_hand = dict(t.dictionary.named_parameters())[key]
        by_hand.data.copy_(torch.nn.functional.normalize(by_hand.data.flip(0) + 0.5, dim=-1))
        mine = by_hand.detach().clone()
        t.update(0, X)
        torch.testing.assert_close(by_hand.detach(), mine)
        if p.ndim == 1 and not scale_encoder:  # what was not set is as it would have been
            for other, now in t.dictionary.named_parameters():
                if other != key:
                    torch.testing.assert_close(now.detach(), initial[other])


@pytest.mark.parametrize("name", METHODS)
def test_a_first_step_that_is_not_0_initializes_nothing(name):
    t = trainer(name, lr=0.0)
    before = {key: p.detach().clone() for key, p in t.dictionary.named_parameters()}
    t.update(500, X)
    for key, p in t.dictionary.named_parameters():
        torch.testing.assert_close(p.detach(), before[key])


def test_a_hand_written_loop_is_penalized():
    t = trainer("standard", sparsity_penalty=1.0)
    for step in range(60):
        t.optimizer.zero_grad()
        t.loss(X, step=step).backward()
        t.optimizer.step()
    free = trainer("standard", sparsity_penalty=0.0)
    for step in range(60):
        free.optimizer.zero_grad()
        free.loss(X, step=step).backward()
        free.optimizer.step()
    assert t.ae.encode(X).sum() < 0.95 * free.ae.encode(X).sum()
