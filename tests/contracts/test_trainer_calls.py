"""What callers may do around the steps of every trainer, without another dictionary coming out."""

import copy
import dataclasses
import pickle

import pytest
import torch

from dictionary_learning.dictionaries import WIRINGS
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.trainers import OPTIMIZERS, TRAINERS, TopKTrainer, TrainerConfig
from dictionary_learning.trainers._dead_latents import resample_
from tests.tiny import Planted

NAMES = [name for name in TRAINERS if issubclass(TRAINERS[name].Config, TrainerConfig)]
OWN = [name for name in OPTIMIZERS if name != "adam_8bit"]  # a package that is not installed
DIM, STEPS = 16, 6


def build(name, **options):
    config = TRAINERS[name].Config
    known = {field.name for field in dataclasses.fields(config)}
    wanted = {"dict_size": 32, "k": 4, "lr": 1e-2, "loss_fn": "reconstruction", "dead_feature_threshold": 64, **options}
    facts = {"output_dims": (DIM,)} if WIRINGS[options.get("wiring", "autoencoder")].writes_others else {}
    settings = config(**{key: value for key, value in wanted.items() if key in known})
    return settings.build(activation_dim=DIM, steps=STEPS, device="cpu", **facts)


def batches():
    return list(Planted(DIM).batches(STEPS, 32))


def weights(trainer):
    return {name: value.clone() for name, value in trainer.export().state_dict().items()}


def assert_same(one, other):
    assert all(torch.equal(one[name], other[name]) for name in one)


def plain(name, **options):
    trainer = build(name, **options)
    for step, x in enumerate(batches()):
        trainer.update(step, x)
    return weights(trainer)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_do_not_reach_the_model_of_the_batch(name):
    model = torch.nn.Linear(DIM, DIM, bias=False)
    torch.nn.init.eye_(model.weight)
    trainers = [build(name), build(name)]
    for step, x in enumerate(batches()):
        activations = model(x)
        for trainer in trainers:  # of one batch, as in `trainSAE`
            trainer.update(step, activations, activations if step % 2 else None)
    assert model.weight.grad is None
    assert_same(weights(trainers[0]), plain(name))


class Marked(torch.Tensor):
    """A class of a user's."""


@pytest.mark.parametrize("name", NAMES)
def test_batches_may_be_of_a_class_of_the_users(name):
    trainer = build(name)
    for step, x in enumerate(batches()):
        loss = trainer.update(step, x.as_subclass(Marked))
        assert type(loss) is torch.Tensor
    assert_same(weights(trainer), plain(name))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_that_a_caller_computed_are_of_no_step(name):
    trainer = build(name)
    for step, x in enumerate(batches()):
        if step:
            trainer.loss(x).total.backward()
        trainer.update(step, x)
    assert_same(weights(trainer), plain(name))


def test_gradients_of_gathered_batches_stay():
    def made(look):
        trainer = build("top_k", grad_acc_steps=2)
        for step, x in enumerate(batches()):
            if look and step % 2 == 0:
                trainer.loss(x).total.backward()
            trainer.update(step, x)
        return weights(trainer)

    assert_same(made(look=True), made(look=False))


@pytest.mark.parametrize(("name", "optimizer"), [*((n, "adam") for n in NAMES), *(("top_k", o) for o in OWN)])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_copies_train_on(name, optimizer, copied):
    trainer = build(name, optimizer=optimizer)
    given = batches()
    for step in range(3):
        trainer.update(step, given[step])
    other = copied(trainer)
    for step in range(3, STEPS):
        other.update(step, given[step])
    assert_same(weights(other), plain(name, optimizer=optimizer))
    assert trainer.step == 3  # the first is left as it was


@pytest.mark.parametrize("bad", [lambda x: x.to(torch.complex64), lambda x: x.to_sparse()], ids=["complex", "sparse"])
def test_activations_of_other_kinds_are_refused(bad):
    trainer = build("top_k")
    x = batches()[0]
    with pytest.raises((ConfigError, DataError), match=r"dense|real"):
        trainer.update(0, bad(x))
    with pytest.raises(ConfigError, match=r"dense|real"):
        trainer.dictionary.encode(bad(x))


@pytest.mark.parametrize("name", ["standard", "jump_relu", "p_anneal", "gated", "top_k"])
@pytest.mark.parametrize("wiring", list(WIRINGS))
def test_resampled_latents_do_not_fire_on_what_all_tokens_share(name, wiring):
    options = {"n_heads": 2} if wiring == "heads" else {}
    try:
        trainer = build(name, wiring=wiring, **options)
    except ConfigError:
        pytest.skip("a wiring that the method refuses")
    planted = Planted(DIM, seed=3)
    planted.offset *= 20  # a mean far larger than what is on top of it
    batch = [planted.batch(256) for _ in range(2)]
    trainer.update(0, batch[0], batch[0].flip(1).contiguous() if WIRINGS[wiring].writes_others else None)
    dictionary = trainer.dictionary
    x = batch[1]
    y = x.flip(1).contiguous() if WIRINGS[wiring].writes_others else x
    from dictionary_learning.trainers import Batch

    dead = torch.arange(0, dictionary.dict_size, 3)
    errors = (dictionary(x) - y).pow(2).sum(-1)
    revived = resample_(dictionary, trainer.optimizer, Batch(x, y), errors.detach(), dead, torch.Generator())
    pre = torch.cat(
        [
            part.coder.pre_activations(x[:, part.reads], part.own(revived))
            + part.coder.encoder_biases()[0][part.own(revived)] * (part.coder.b_enc is None)
            for part in dictionary.coders()
            if len(part.own(revived))
        ],
        dim=1,
    )  # (tokens, latents)
    share = (pre > 0).float().mean(0)
    assert 0.2 < share.mean() < 0.8
    shared = y.mean(0)
    for part in dictionary.coders():
        rows = part.coder.W_dec[part.own(revived)]
        cosines = torch.nn.functional.cosine_similarity(rows, shared[part.writes].unsqueeze(0), dim=1)
        assert cosines.abs().mean() < 0.8


@pytest.mark.parametrize("name", ["gated", "gated_anneal"])
def test_auxk_revives_gates(name):
    trainer = build(name, auxk_alpha=1.0)
    x = batches()[0]
    (part,) = trainer.dictionary.coders()
    gate = part.coder.nonlinearity.gate_bias
    dead = torch.arange(0, 32, 2)
    with torch.no_grad():
        gate[dead] = 0.05
    trainer.dictionary.zero_grad()
    outputs = trainer.dictionary.decode_among(x, dead, 3)
    (outputs - x).pow(2).sum().backward()
    # by hand: the largest relu(W_enc (x - b_dec) + gate_bias) of the dead
    coder = part.coder
    pre = (x - coder.b_dec) @ coder.W_enc[dead].T + gate[dead]
    values, chosen = pre.topk(3, dim=1)
    by_hand = torch.zeros_like(pre).scatter(1, chosen, values.relu()) @ coder.W_dec[dead]
    torch.testing.assert_close(outputs, by_hand, rtol=1e-4, atol=1e-5)
    assert gate.grad is not None and gate.grad[dead].abs().sum() > 0 and not gate.grad[1::2].any()


@pytest.mark.parametrize("name", NAMES)
def test_logged_schedules_are_those_of_the_step(name):
    trainer = build(name, warmup_steps=2, sparsity_warmup_steps=4, k_anneal_steps=4)
    given = batches()
    for step in range(4):
        before = {key: part.now for key, part in trainer.components.items() if hasattr(part, "now")}
        trainer.update(step, given[step])
        figures = trainer.metrics()
        names = {"coefficient": "sparsity_coefficient", "annealed_k": "effective_l0"}
        for key, value in before.items():
            assert float(figures[names[key]]) == pytest.approx(value)


def test_eps_of_zero_is_refused():
    with pytest.raises(ConfigError, match="eps is 0"):
        TopKTrainer.Config(eps=0)
