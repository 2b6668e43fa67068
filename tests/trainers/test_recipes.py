"""Recipes, optimizers, averages: settings that change what a trainer is built of."""

import functools

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.errors import UnknownNameError
from dictionary_learning.trainers import OPTIMIZERS, SCHEDULES, TRAINERS
from dictionary_learning.trainers.recipes import RECIPES
from tests.contracts.test_wirings import SITES, batches
from tests.tiny import Planted


@torch.no_grad()
def fvu(dictionary, x: torch.Tensor) -> float:
    return float((dictionary(x) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum())


@pytest.mark.parametrize("name", [name for name in RECIPES if not RECIPES[name]().needs_contexts])
def test_recipe_trains(name):
    config = RECIPES[name](dict_size=96, **({"k": 4} if hasattr(RECIPES[name](), "k") else {}))
    data = batches(config.wiring, 4, 64) if config.wiring in SITES else list(Planted().batches(4, 64))
    (dictionary,) = trainSAE(data, config, 4, progress=False)
    assert all(p.isfinite().all() for p in dictionary.parameters())
    assert config.trainer_class.Config is type(config)


def test_recipes_cite_their_source_and_take_changes():
    for name, recipe in RECIPES.items():
        assert any(word in (recipe.__doc__ or "") for word in ("http", "Circuits", "DeepMind", "sparsify")), name
    assert RECIPES["gao_2024"](k=7, lr=0.5).lr == 0.5
    with pytest.raises(UnknownNameError):
        RECIPES["gao_2024"](ks=3)


@pytest.mark.parametrize(
    "optimizer",
    [name for name in OPTIMIZERS if name != "adam_8bit"] + [functools.partial(torch.optim.RMSprop, alpha=0.9)],
    ids=str,
)
def test_optimizer_learns_and_the_finished_dictionary_is_the_averaged_one(optimizer, full):
    data, steps = Planted(), 250 if full else 120
    schedule = {"schedule": "constant"} if "free" in str(optimizer) else {}
    config = {"trainer": "top_k", "k": 4, "dict_size": 64, "optimizer": optimizer, "lr": 5e-3, **schedule}
    (dictionary,) = trainSAE(list(data.batches(steps, 128)), config, steps, progress=False)
    assert fvu(dictionary, data.batch(1024)) < 0.4
    torch.testing.assert_close(dictionary.W_dec.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_schedule_is_followed(schedule):
    t = TRAINERS["standard"](
        activation_dim=8, dict_size=16, steps=100, lr=1.0, schedule=schedule, warmup_steps=10, device="cpu"
    )
    rates = [t.learning_rate(step) for step in range(100)]
    assert rates[9] == pytest.approx(1.0) and all(rate > 0 for rate in rates)
    assert rates[:10] == sorted(rates[:10])


def test_averaged_weights_are_what_is_given_back():
    data = list(Planted().batches(30, 64))
    config = {"trainer": "top_k", "k": 4, "dict_size": 64}
    (plain,), (averaged,) = (
        trainSAE(data, {**config, "ema_decay": decay}, 30, progress=False) for decay in (None, 0.9)
    )
    assert not torch.equal(plain.W_enc, averaged.W_enc)
    torch.testing.assert_close(averaged.W_dec.norm(dim=1), torch.ones(64))


def test_per_site_settings_in_one_run():
    data = [{"a": x, "b": 2 * x} for x in Planted().batches(5, 64)]
    configs = [
        {"trainer": "top_k", "k": k, "lr": lr, "dict_size": 64, "site": s}
        for s, k, lr in (("a", 2, 1e-3), ("b", 5, 1e-2))
    ]
    first, second = trainSAE(data, configs, 5, progress=False)
    assert (first.k, second.k) == (2, 5)


@pytest.mark.parametrize("device", ["pre_activation", "resample"])
def test_dead_latents_come_back(device):
    """Latents whose biases were pushed far down fire again, by each of the ways."""
    options = {
        "pre_activation": {"pre_act_loss_coefficient": 1.0},
        "resample": {"resample_steps": 20},
    }[device]
    common = {
        "activation_dim": 32,
        "dict_size": 96,
        "steps": 400,
        "lr": 1e-2,
        "sparsity_penalty": 0.02,
        "device": "cpu",
    }

    def alive(**more) -> int:
        t = TRAINERS["standard"](**common, dead_feature_threshold=1000, **more)
        *data, held_out = Planted().batches(330, 64)
        t.initialize(data[0])
        t.dictionary.b_enc.data[:40] = -3.0
        for x in data:
            t.update(t.step, x)
        return int((t.dictionary.encode(held_out) > 0).any(0)[:40].sum())

    assert alive() < 5
    assert alive(**options) > 15


def test_ghost_gradients_move_dead_latents_alone():
    t = TRAINERS["standard"](
        activation_dim=32, dict_size=96, steps=100, use_ghost_grads=True, dead_feature_threshold=100, device="cpu"
    )
    *data, x = Planted().batches(4, 64)
    for batch in data:
        t.update(t.step, batch)
    t.dictionary.b_enc.data[:40] = -3.0
    t.dead.tokens_since_fired[:40] = 5000
    t.dead.n_tokens = 5000
    t.dead.observe((torch.arange(96) >= 40).long(), 1)
    optimizer = torch.optim.Adam(t.dictionary.parameters(), 1e-2)
    cosines = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = t.loss(x)
        loss.terms["ghost_loss"].backward()
        for gradient in (t.dictionary.W_enc.grad, t.dictionary.W_dec.grad):
            assert gradient[:40].abs().sum() > 0 and gradient[40:].abs().sum() == 0
        residual = (x - loss.reconstruction.outputs).detach()
        ghosts = t.dictionary.pre_activations(x)[:, :40].exp().detach() @ t.dictionary.W_dec[:40].detach()
        cosines.append(torch.nn.functional.cosine_similarity(ghosts, residual).mean())
        optimizer.step()
    assert cosines[-1] > cosines[0] + 0.2  # they come to point where the others err


def test_resampled_latents_start_anew_in_the_optimizer():
    t = TRAINERS["gated"](
        activation_dim=32,
        dict_size=96,
        steps=100,
        lr=1e-3,
        beta1=0.9,
        dead_feature_threshold=100,
        resample_steps=5,
        device="cpu",
    )
    data = list(Planted().batches(5, 64))
    for x in data[:4]:
        t.update(t.step, x)
    t.dead.tokens_since_fired[:10] = 5000
    t.dead.n_tokens = 5000
    t.dictionary.nonlinearity.gate_bias.data[:10] = -100
    before = t.dictionary.W_dec.detach().clone()
    t.update(t.step, data[4])
    d = t.dictionary
    moved = (d.W_dec - before).norm(dim=1) > 0.1
    assert moved[:10].all() and not moved[10:].any()
    torch.testing.assert_close(d.W_dec[:10].norm(dim=1), torch.ones(10))
    for p in (d.W_enc, d.W_dec, d.nonlinearity.gate_bias, d.nonlinearity.r_mag):
        assert not t.optimizer.state[p]["exp_avg"][:10].any()
        assert t.optimizer.state[p]["exp_avg_sq"][10:].any()
    living = d.W_enc[10:].norm(dim=1).mean()
    torch.testing.assert_close(d.W_enc[:10].norm(dim=1), 0.2 * living.expand(10), rtol=1e-3, atol=1e-4)
    assert t.dead.indices is None
    assert t.learning_rate(t.step) < t.learning_rate(t.step - 1)  # it rises again
