"""What a user's own method draws from the generators of the process follows from the seed alone."""

import dataclasses
import random
import threading

import numpy as np
import pytest
import torch

from dictionary_learning import AutoEncoder, SAETrainer, trainSAE
from dictionary_learning._random_state import seeded
from dictionary_learning.dictionaries.nonlinearities import ReLU
from dictionary_learning.trainers import PENALTIES, TRAINERS
from tests.contracts.test_paths import options_of
from tests.contracts.test_trainers import FAMILY
from tests.test_resume import check_resumes
from tests.tiny import Planted

METHODS = [name for name in TRAINERS if name not in ("temporal", "end_to_end")]
ROWS = list(Planted(dim=16).batches(6, 64))


def noise(like):
    """Draws from every generator of the process."""
    return torch.rand_like(like) * random.random() * np.random.rand()  # noqa: NPY002


def noisy(base):
    """Returns a method whose steps draw."""

    class Noisy(base):
        @dataclasses.dataclass(frozen=True, kw_only=True)
        class Config(base.Config):
            pass

        def objective(self, batch):
            x = batch.x + 0.1 * noise(batch.x)
            return super().objective(batch._replace(x=x, y=x if batch.y is batch.x else batch.y))

    return Noisy


OWN = {name: noisy(TRAINERS[name]) for name in METHODS}


class DrawsAsReLU(ReLU):
    """A nonlinearity that draws."""

    def activate(self, pre, latents=None):
        return super().activate(pre, latents) * (1 + 0.1 * noise(pre))


class OfOldScripts(AutoEncoder):
    """A dictionary whose constructor draws, as for dictionary-learning 0.1."""

    def __init__(self, activation_dim, dict_size):
        super().__init__(activation_dim, dict_size)
        self.b_dec.data += noise(self.b_dec.data)


class WithNoise(TRAINERS["standard"]):
    """A method of the package with a nonlinearity of the user's."""

    class Config(TRAINERS["standard"].Config):
        pass

    def nonlinearity(self):
        return DrawsAsReLU()


class OwnSteps(SAETrainer):
    """Makes its own steps, as for dictionary-learning 0.1."""

    def __init__(self, activation_dim, dict_size, steps, seed=None, device="cpu", **_):
        super().__init__(seed)
        self.ae = AutoEncoder(activation_dim, dict_size)
        self.optimizer = torch.optim.Adam(self.ae.parameters(), lr=1e-3)

    def update(self, step, x):
        self.optimizer.zero_grad()
        (self.ae(x + noise(x)) - x).pow(2).sum(-1).mean().backward()
        self.optimizer.step()


def noisy_l1(sparsity):
    return PENALTIES["l1"](sparsity) * (1 + 0.1 * noise(torch.ones(())))


def config_of(trainer):
    return {"trainer": trainer, **options_of(trainer.Config, dict_size=40, seed=0)}


CASES = {
    **{f"objective of {name}": config_of(trainer) for name, trainer in OWN.items()},
    "nonlinearity": config_of(WithNoise),
    "penalty": {"trainer": "standard", "dict_size": 40, "sparsity_function": "noisy_l1"},
    "dictionary": {"trainer": "standard", "dict_size": 40, "dict_class": OfOldScripts},
    "steps": {"trainer": OwnSteps, "activation_dim": 16, "dict_size": 40, "steps": 6},
    "steps of three batches": {**config_of(OWN["top_k"]), "grad_acc_steps": 3},
}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """For these tests only: others go over the registry."""
    monkeypatch.setattr(PENALTIES, "_entries", {**PENALTIES._entries, "noisy_l1": noisy_l1})


@pytest.fixture(autouse=True)
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def states():
    """Returns the states of generators as numbers; beartype draws from Python's in tests."""
    return hash(bytes(torch.get_rng_state().tolist())), hash(str(np.random.get_state()))  # noqa: NPY002


def train(configs, seed=0, n=6):
    found = trainSAE(ROWS[:n], configs, n, progress=False, device="cpu", seed=seed)
    return [dictionary.state_dict() for dictionary in found]


def are_same(one, other):
    return all(torch.equal(x, other[name]) for name, x in one.items())


def family(case):
    """Returns what a case shows: of methods that share their code, one."""
    name = case.removeprefix("objective of ")
    return {FAMILY.get(name, name)}


@pytest.mark.covering(shows=family)
@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_gives_the_same_bits_alone_and_beside_others(case):
    torch.manual_seed(1)
    (first,) = train(CASES[case])
    before = states()
    beside = train([CASES[case], {"trainer": OWN["top_k"], "k": 3, "dict_size": 40}, CASES[case]])
    assert states() == before  # nor does a run change what its caller draws next
    with seeded(2):
        (again,) = train(CASES[case])
    assert are_same(first, again)
    # with several threads each step is on its share of them or on all, with the same bits where nothing is divided
    assert are_same(first, beside[0])
    assert are_same(first, beside[2])
    (other,) = train(CASES[case], seed=1)
    assert not are_same(first, other)


@pytest.mark.parametrize("case", ["objective of top_k", "penalty", "steps", "steps of three batches"])
def test_a_run_that_is_resumed_draws_what_it_would_have(case, tmp_path):
    check_resumes(lambda: list(ROWS), [{**CASES[case], "seed": 0}], tmp_path, stops=(3,), steps=6)


def test_each_batch_of_a_step_has_random_numbers_of_its_own():
    drawn = []

    class Recording(TRAINERS["top_k"]):
        def objective(self, batch):
            drawn.append(float(torch.rand(())))
            return super().objective(batch)

    train({"trainer": Recording, "k": 3, "dict_size": 40, "grad_acc_steps": 2, "micro_acc_steps": 2})
    assert len(set(drawn)) == 12


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_the_package_draw_from_generators_of_their_own(name):
    options = {"dead_feature_threshold": 64, "resample_steps": 2}
    trainer = (
        TRAINERS[name]
        .Config(**options_of(TRAINERS[name].Config, **options))
        .build(activation_dim=16, steps=6, device="cpu")
    )
    before = states()
    assert not trainer.may_draw
    for step, x in enumerate(ROWS):
        trainer.update(step, x)
    assert states() == before


def test_runs_in_several_threads_do_not_disturb_each_other():
    class Drawing(TRAINERS["top_k"]):
        def objective(self, batch):
            return super().objective(batch._replace(x=torch.nn.functional.dropout(batch.x, 0.3)))

    torch.set_num_threads(1)
    config = config_of(Drawing)
    (expected,) = train(config)
    found = [None] * 4

    def work(number):
        torch.set_num_threads(1)
        (found[number],) = train(config)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(are_same(one, expected) for one in found)
