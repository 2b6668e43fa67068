"""What callers may do around the steps of every trainer, without another dictionary coming out."""

import copy
import dataclasses
import json
import pickle
import subprocess
import sys

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning.dictionaries import WIRINGS
from dictionary_learning.errors import ConfigError, DataError, DivergenceError
from dictionary_learning.trainers import OPTIMIZERS, TRAINERS, Batch, TopKTrainer, TrainerConfig, recipes
from dictionary_learning.trainers._batch import finite_batch
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
            if look:  # also between the two batches of a step
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
    x = bad(batches()[0])
    with pytest.raises(DataError, match="dense tensor of real numbers"):
        finite_batch(x, None, torch.device("cpu"))  # as `update` begins
    with pytest.raises(ConfigError, match="dense tensor .* of real numbers"):
        build("top_k").dictionary.check_width(x)


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


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_that_failed_can_be_given_again(name, monkeypatch):
    """As after memory ran out: what was gathered before it is still there."""
    trainer, given = build(name, grad_acc_steps=2), batches()
    for step, x in enumerate(given):
        if step in (3, 4):  # the second and the first batch of a step
            with monkeypatch.context() as patch, pytest.raises(MemoryError):
                patch.setattr(trainer, "objective", lambda batch: (_ for _ in ()).throw(MemoryError()))
                trainer.update(step, x)
        trainer.update(step, x)
    assert_same(weights(trainer), plain(name, grad_acc_steps=2))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
@pytest.mark.parametrize("optimizer", OWN)
def test_copies_of_an_open_step_train_on(copied, optimizer):
    trainer = build("top_k", optimizer=optimizer, grad_acc_steps=3)
    given = batches()
    for step in range(4):
        trainer.update(step, given[step])
    other = copied(trainer)
    for step in (4, 5):
        trainer.update(step, given[step])
        other.update(step, given[step])
    assert trainer.step == other.step == 2
    assert_same(weights(other), weights(trainer))


def test_eps_of_zero_is_refused():
    with pytest.raises(ConfigError, match="eps is 0"):
        TopKTrainer.Config(eps=0)


@pytest.mark.parametrize("name", ["top_k", "batch_top_k", "group_max", "abs_top_k", "matching_pursuit"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dictionaries_stored_in_half_precision_are_trained_on(name, dtype):
    trainer = build(name)
    for step, x in enumerate(batches()):
        trainer.update(step, x)
    stored = trainer.export().to(dtype)
    config = TRAINERS[name].Config(finetune=stored)
    further = config.build(activation_dim=DIM, steps=STEPS, device="cpu")
    x = batches()[0]
    torch.testing.assert_close(further.dictionary(x), stored(x).float(), rtol=0.02, atol=0.02)
    further.update(0, x)
    norms = further.dictionary.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"finetune": {"a": 1}}, "finetune={'a': 1}"),
        ({"finetune": 3}, "finetune=3"),
        ({"dead_feature_threshold": 10**30}, "dead_feature_threshold is"),
        ({"l1_penalty": 1.0}, "Unknown option .* 'l1_penalty'"),
        ({"learning_rate": 1e-3}, "Did you mean 'lr'"),
        ({"d_sae": 64}, "Did you mean 'dict_size'"),
    ],
)
def test_odd_settings_are_refused_as_they_were_given(settings, said):
    with pytest.raises(ConfigError, match=said):
        trainSAE(batches(), {"trainer": "top_k", **settings}, steps=3, progress=False, device="cpu")


@pytest.mark.parametrize("name", ["TopK", "TOP_K", "TrainerTopK", "TopKTrainer", "top-k"])
def test_trainers_are_guessed_from_other_spellings(name):
    with pytest.raises(ConfigError, match="Did you mean 'top_k'"):
        trainSAE(batches(), {"trainer": name}, steps=3, progress=False, device="cpu")


def test_a_run_without_a_seed_records_the_one_it_drew(tmp_path):
    config = {"trainer": "top_k", "k": 4, "dict_size": 32, "seed": None}
    options = {"progress": False, "device": "cpu", "save_dir": tmp_path / "run", "checkpoint_steps": 2}
    (one,) = trainSAE(batches(), config, steps=STEPS, **options)
    seed = json.loads((tmp_path / "run" / "trainer_0" / "config.json").read_text())["trainer"]["seed"]
    assert isinstance(seed, int)
    (again,) = trainSAE(batches(), config | {"seed": seed}, steps=STEPS, progress=False, device="cpu")
    assert_same(one.state_dict(), again.state_dict())
    # a run that goes on keeps it
    (resumed,) = trainSAE(batches(), config, steps=STEPS, resume="auto", **options)
    assert_same(one.state_dict(), resumed.state_dict())


class AlwaysNan(TopKTrainer):
    """A method whose loss is never finite."""

    def objective(self, batch):
        loss = super().objective(batch)
        return loss._replace(total=loss.total * torch.nan)


def test_a_run_that_made_no_step_is_an_error(tmp_path):
    configs = [AlwaysNan.Config(k=4, dict_size=32), TopKTrainer.Config(k=4, dict_size=32)]
    with pytest.raises(DivergenceError, match="made no step: in all 6") as error:
        trainSAE(batches(), configs, steps=STEPS, progress=False, device="cpu", save_dir=tmp_path / "run")
    assert len(error.value.dictionaries) == 1
    # what would pass for a result is not there, as for a sweep
    assert [path.name for path in (tmp_path / "run").glob("trainer_*")] == ["trainer_1"]


def test_an_autocast_without_effect_is_told(caplog):
    config = {"trainer": "top_k", "k": 4, "dict_size": 32}
    trainSAE(batches(), config, steps=STEPS, progress=False, device="cpu", autocast_dtype=torch.bfloat16)
    assert "autocast_dtype=torch.bfloat16 has no effect" in caplog.text
    caplog.clear()
    trainSAE(batches(), config, steps=STEPS, progress=False, device="cpu")
    assert "autocast" not in caplog.text


def test_recipes_have_all_of_their_names():
    assert all(getattr(recipes, name) is recipes.RECIPES[name] for name in recipes.RECIPES)
    with pytest.raises(AttributeError, match="no_such"):
        _ = recipes.no_such


@pytest.mark.parametrize("name", [name for name in NAMES if name != "matching_pursuit"])
def test_dictionaries_take_the_transforms_of_torch(name):
    trainer = build(name)
    trainer.update(0, batches()[1])
    dictionary = trainer.export()
    x = batches()[0][:3]
    rows = torch.func.vmap(torch.func.jacrev(dictionary))(x)  # (3, DIM, DIM)
    given = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(dictionary(given)[:, 0].sum(), given)
    torch.testing.assert_close(rows[:, 0], plain, rtol=1e-4, atol=1e-5)


COMPILED = """
import torch
from dictionary_learning.trainers import TRAINERS, TrainerConfig
for name in TRAINERS:
    if issubclass(TRAINERS[name].Config, TrainerConfig):
        trainer = TRAINERS[name].Config(dict_size=32, loss_fn="reconstruction").build(activation_dim=16, steps=1)
        x = torch.randn(5, 16)
        trainer.update(0, x)
        dictionary = trainer.export()
        torch._dynamo.reset()
        compiled = torch.compile(dictionary, backend="eager")
        torch.testing.assert_close(compiled(x), dictionary(x))
        compiled(x).square().sum().backward()
"""


def test_dictionaries_can_be_compiled():
    # without the checks of types that tests make, which torch.compile cannot follow
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
