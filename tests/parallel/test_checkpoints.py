"""Checkpoints of several ranks: parts that belong together, and what is done where they do not."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from dictionary_learning import trainSAE
from dictionary_learning._resumed import Resumed
from dictionary_learning._run_folder import files_of_run
from dictionary_learning.errors import ConfigError
from dictionary_learning.parallel import kth_largest
from dictionary_learning.trainers import TRAINERS
from dictionary_learning.trainers._latent_state import _is_same
from tests.parallel.ranks import results
from tests.parallel.threads import run_threads
from tests.tiny import Planted

CONFIG = {"trainer": "top_k", "k": 4, "dict_size": 96, "lr": 3e-3}


def planted(parts=2, steps=6):
    return [part for x in Planted().batches(steps, 64) for part in x.chunk(parts)]


def trained(folder, configs=CONFIG, steps=6, placement="latent", parts=2, **options):
    options = {"save_dir": folder, "checkpoint_steps": 2, "placement": placement, **options}
    found = trainSAE(planted(parts, steps), configs, steps, progress=False, device="cpu", **options)
    return [{name: value.clone() for name, value in one.state_dict().items()} for one in found]


def on_two(*arguments, **options):
    return run_threads(2, lambda: trained(*arguments, **options))[0]


def near(some, others):
    return all(
        float((one[name] - other[name]).norm()) <= 1e-3 * float(other[name].norm()) + 1e-6
        for one, other in zip(some, others, strict=True)
        for name in other
    )


def test_ranks_whose_dictionaries_accumulate_differently_save_together(tmp_path):
    configs = [{**CONFIG, "grad_acc_steps": 1}, {**CONFIG, "grad_acc_steps": 2, "seed": 1}]
    alone = trained(tmp_path / "alone", configs, parts=1, checkpoint_steps=1)
    assert near(on_two(tmp_path / "two", configs, placement="dictionary", checkpoint_steps=1), alone)
    steps = [path.name for path in sorted((tmp_path / "two" / "checkpoints").glob("step_*"))]
    assert steps == ["step_4", "step_6"]  # between two steps of both


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    return on_two(folder), folder


@pytest.fixture
def run(made, tmp_path):
    """A run whose latents are on two ranks."""
    weights, folder = made
    return weights, Path(shutil.copytree(folder, tmp_path / "run"))


@pytest.mark.parametrize("part", ["dictionary_0_latents_1", "share_1"])
@pytest.mark.parametrize("fault", ["damaged", "of another run", "missing"])
def test_a_checkpoint_with_a_part_that_does_not_belong_gives_way(run, part, fault, monkeypatch, tmp_path):
    weights, folder = run
    place = folder / "checkpoints" / part / "step_6"
    if fault == "missing":
        shutil.rmtree(place)
    elif fault == "damaged":
        (file,) = place.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    else:
        on_two(tmp_path / "other")
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "other" / "checkpoints" / part / "step_6", place)
    steps, load = [], Resumed.load
    monkeypatch.setattr(Resumed, "load", lambda self, *given: (steps.append(self.step), load(self, *given)))
    assert near(on_two(folder, resume="auto"), weights)
    assert steps == [4, 4]


def test_overwriting_removes_parts_of_latents_too(run):
    _, folder = run
    assert {"dictionary_0_latents_0", "dictionary_0_latents_1", "share_0"} <= {p.name for p in files_of_run(folder)}
    shorter = on_two(folder, steps=4, overwrite=True)
    assert {path.name for path in (folder / "checkpoints").glob("*/step_*")} == {"step_2", "step_4"}
    assert near(on_two(folder, steps=4, resume="auto"), shorter)


def test_a_loss_of_ones_own_is_not_spread_unless_it_says_so(tmp_path):
    class Mine(TRAINERS["top_k"]):
        def objective(self, batch):
            return super().objective(batch)

    class Renamed(TRAINERS["top_k"]):
        pass

    assert Renamed.spreads_latents and not Mine.spreads_latents
    with pytest.raises(ConfigError, match="Mine needs all latents of a token in one place"):
        on_two(tmp_path / "run", Mine.Config(k=4, dict_size=96))


def test_values_that_are_no_numbers_are_counted_as_none(tmp_path):
    values = torch.tensor([1.0, -0.0, torch.nan, -torch.nan, 3.0, torch.inf])
    kth = run_threads(2, lambda: kth_largest(values, 3, trainer_ranks()))
    assert [float(one) for one in kth] == [3.0, 3.0]  # of inf, inf, 3, 3, 1, 1


def trainer_ranks():
    from dictionary_learning import training

    return training.start()


def test_a_number_and_no_number_are_not_the_same():
    nan, one = torch.tensor([torch.nan]), torch.tensor([1.0])
    assert _is_same(nan, nan) and _is_same(one, one) and not _is_same(nan, one) and not _is_same(one, nan)


def slow_evaluation():
    """A run in which rank 0 evaluates for longer than ranks wait for a step."""
    os.environ["DICTIONARY_LEARNING_RANK_TIMEOUT"] = "3"

    class Slow:
        def __iter__(self):
            time.sleep(6)
            return iter(planted(1, 1))

    options = {"evaluate_every": 3, "evaluation_data": Slow(), "placement": "data"}
    (one,) = trainSAE(planted(), CONFIG, 6, progress=False, device="cpu", **options)
    return one.dict_size


def test_ranks_wait_for_a_long_evaluation():
    assert results(2, slow_evaluation) == [96, 96]
