"""Whole runs on several ranks: text in shares, dictionaries on several ranks, checkpoints, faults."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from dictionary_learning import ActivationBuffer, ContextStream, load_dictionary, load_model, trainSAE
from dictionary_learning.errors import Interrupted, RankError
from dictionary_learning.trainers import TRAINERS
from tests import tiny
from tests.parallel.ranks import results, run_ranks
from tests.tiny import Planted

CONFIGS = [
    {"trainer": "top_k", "k": 4, "dict_size": 96, "lr": 3e-3},
    {"trainer": "batch_top_k", "k": 4, "dict_size": 64, "lr": 3e-3, "seed": None},
    {"trainer": "standard", "dict_size": 80, "seed": 3},
]
OWN = {"progress": False, "device": "cpu"}


def loaded():
    return load_model(tiny.model(), tokenizer=tiny.tokenizer())


def buffer(n_documents=30, **options):
    sizes = {"n_ctxs": 8, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 32}
    return ActivationBuffer(tiny.documents(n_documents), loaded(), "model.layers.1", **{**sizes, **options})


def served(n_documents):
    """Returns the rows that each step trains on, of a run on all of the text."""
    rows = []

    class Seen(TRAINERS["top_k"]):
        def update(self, step, x, y=None, model_loss_fn=None, lengths=None):
            rows.append(x.clone())
            return super().update(step, x, y, model_loss_fn, lengths)

    data = buffer(n_documents, max_activation_norm_multiple=None)
    trainSAE(data, Seen.Config(k=3, dict_size=32), 1000, placement="data", **OWN)
    return rows


def contexts():
    """Returns the weights of an end-to-end and of a temporal run on contexts in shares."""
    found = []
    for trainer, options in (("end_to_end", {}), ("temporal", {"predict": False})):
        data = ContextStream(tiny.documents(20), loaded(), "model.layers.1", ctx_len=16, batch_size=2, **options)
        (trained,) = trainSAE(data, {"trainer": trainer, "k": 3, "dict_size": 32}, 1000, **OWN)
        found.append(dict(trained.state_dict()))
    return found


def planted(parts, steps=6, n=64):
    return [part for x in Planted().batches(steps, n) for part in x.chunk(parts)]


def of_dictionaries(folder):
    """Returns all dictionaries of a run in which each rank has some, and what went through the log."""
    trained = trainSAE(planted(2), CONFIGS[:1] + CONFIGS[2:], 6, save_dir=folder, placement="dictionary", **OWN)
    return [dict(one.state_dict()) for one in trained]


def broken(kind):
    """Returns what a rank got whose other rank has NaN in a batch, or in all of it."""
    data = planted(2)
    if int(os.environ["RANK"]) == 1:
        data[5] = data[5].clone()
        data[5][: None if kind == "whole" else 3] = torch.nan
    figures = []

    class Figures:
        def log(self, values, step, tokens):
            figures.append(values)

        def close(self):
            pass

    (trained,) = trainSAE(data, CONFIGS[0], 6, loggers=[Figures()], log_steps=1, placement="data", **OWN)
    return dict(trained.state_dict()), figures


PLACED = ("data", "dictionary", "latent")


def evaluated(folder, placement, parts=2):
    """Returns the figures of a run that is evaluated while it trains, and what is kept as the best."""
    figures = []

    class Figures:
        def log(self, values, step, tokens):
            pass

        def log_evaluation(self, evaluated, step, tokens):
            figures.append((step, tokens, {name: one.figures for name, one in evaluated.items()}))

        def close(self):
            pass

    options = {"evaluate_every": 3, "save_best": "fvu", "evaluation_data": planted(1, 2, 256), "save_dir": folder}
    trainSAE(planted(parts), CONFIGS[::2], 6, loggers=[Figures()], placement=placement, **options, **OWN)
    return figures


def scenarios(folder):
    """Runs what needs two ranks, in one pair of processes."""
    logging.disable(logging.WARNING)
    return {
        "served": {n: served(n) for n in (1, 3, 14)},
        "contexts": contexts(),
        "dictionaries": of_dictionaries(folder),
        "nan": broken("part"),
        "all nan": broken("whole"),
        "evaluated": {placement: evaluated(folder / placement, placement) for placement in PLACED},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dictionaries")


@pytest.fixture(scope="module")
def two(folder):
    return results(2, scenarios, folder)


@pytest.mark.parametrize("n", [1, 3, 14])  # of one document, the second rank has none
def test_text_is_divided_without_overlap_and_without_loss(two, n):
    alone = []
    for number in range(2):
        alone += list(buffer(n, max_activation_norm_multiple=None).share(number, 2))
    wanted = torch.cat(alone)
    first, second = (of_rank["served"][n] for of_rank in two)
    assert len(first) == len(second)
    assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(first, second, strict=True))
    found = torch.cat(first + second)
    assert torch.equal(found[found[:, 0].argsort()], wanted[wanted[:, 0].argsort()])


def test_shares_of_a_source_are_all_documents():
    from dictionary_learning.data import as_source

    documents = tiny.documents(11)
    for source in (as_source(documents), as_source(iter(documents))):
        if source.repeatable:
            assert [list(source.share(n, 3)) for n in range(3)] == [documents[n::3] for n in range(3)]
        else:
            assert list(source.share(1, 3)) == documents[1::3]


def test_contexts_train_together_and_end_together(two):
    for first, second in zip(*(of_rank["contexts"] for of_rank in two), strict=True):
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_dictionaries_on_several_ranks_have_the_bits_of_one_process(two, folder):
    alone = trainSAE(planted(1), CONFIGS[:1] + CONFIGS[2:], 6, **OWN)
    for number, one in enumerate(alone):
        wanted, saved = one.state_dict(), load_dictionary(folder / f"trainer_{number}").state_dict()
        for name, value in wanted.items():
            assert all(torch.equal(of_rank["dictionaries"][number][name], value) for of_rank in two)
            assert torch.equal(saved[name], value)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) >= 6 and sorted(path.name for path in folder.glob("trainer_*")) == ["trainer_0", "trainer_1"]


@pytest.mark.parametrize(("kind", "counted"), [("nan", (3, 0)), ("all nan", (32, 1))])
def test_nan_on_one_rank_has_one_effect_on_all(two, kind, counted):
    (first, figures), (second, _) = (of_rank[kind] for of_rank in two)
    assert all(torch.equal(first[name], second[name]) and first[name].isfinite().all() for name in first)
    ((last,),) = (list(values.values()) for values in figures[-1:])
    assert (last["nonfinite_tokens"], last["skipped_steps"]) == counted


def resumable(folder, placement, stops=None):
    """Trains with checkpoints; the given rank gets SIGTERM in the midst of it."""

    class Stop(TRAINERS["top_k"]):
        def update(self, *given, **named):
            if self.step == 2 and os.environ.get("RANK") == str(stops):
                os.kill(os.getpid(), signal.SIGTERM)
            return super().update(*given, **named)

    configs = [Stop.Config(k=4, dict_size=96, lr=3e-3, dead_feature_threshold=200), *CONFIGS[2:]]
    options = {"save_dir": folder, "checkpoint_steps": 4, "resume": "auto", "placement": placement}
    try:
        trained = trainSAE(buffer(40, end_of_data="repeat"), configs, 8, **options, **OWN)
    except Interrupted as error:
        return str(error)
    return [dict(one.state_dict()) for one in trained]


@pytest.mark.parametrize("placement", PLACED)
def test_an_evaluation_while_several_ranks_train_is_that_of_one_process(two, folder, placement, tmp_path):
    alone = evaluated(tmp_path, "auto", parts=1)
    (found, silent) = (of_rank["evaluated"][placement] for of_rank in two)
    assert not silent and [one[:2] for one in found] == [one[:2] for one in alone] == [(3, 192), (6, 384)]
    for (*_, by_name), (*_, wanted) in zip(found, alone, strict=True):
        assert by_name.keys() == wanted.keys() and len(by_name) == 2
        for name, figures in wanted.items():
            assert by_name[name] == pytest.approx(figures, rel=2e-3, abs=1e-5)
    best = load_dictionary(folder / placement / "trainer_1" / "best").state_dict()
    for name, value in load_dictionary(tmp_path / "trainer_1" / "best").state_dict().items():
        assert float((best[name] - value).norm()) <= 1e-3 * float(value.norm()) + 1e-6


STOPS = {"data": 1, "dictionary": 0, "latent": 2}
"""For each placement, the rank that is told to stop."""


def whole_and_stopped(folder):
    logging.disable(logging.WARNING)
    return {
        (placement, kind): resumable(folder / kind / placement, placement, stops if kind == "stopped" else None)
        for placement, stops in STOPS.items()
        for kind in ("whole", "stopped")
    }


def resumed(folder):
    return {placement: resumable(folder / "stopped" / placement, placement) for placement in STOPS}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    before = results(4, whole_and_stopped, folder)
    shutil.copytree(folder, folder / "copy")  # for one process
    after = results(2, resumed, folder)
    return before, [*after, resumed(folder / "copy")], folder


@pytest.mark.parametrize("placement", STOPS)
def test_a_run_on_four_ranks_stops_on_all_and_goes_on_on_two_and_on_one(runs, placement):
    before, after, folder = runs
    assert {rank[placement, "stopped"] for rank in before} == {
        "The run stopped after step 3 of 8. It can go on with resume='auto'."
    }
    for rank in after:
        for one, wanted in zip(rank[placement], before[0][placement, "whole"], strict=True):
            for name in wanted:
                assert float((one[name] - wanted[name]).norm()) <= 1e-3 * float(wanted[name].norm()) + 1e-6, name
    assert not list(folder.rglob("*.unfinished"))


def killed_in_a_step():
    class Dies(TRAINERS["top_k"]):
        def update(self, *given, **named):
            if self.step == 2 and int(os.environ["RANK"]) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().update(*given, **named)

    trainSAE(planted(3), Dies.Config(k=4, dict_size=96), 6, placement="data", **OWN)


def test_a_killed_rank_ends_the_others_with_an_error():
    found = run_ranks(3, killed_in_a_step)
    assert found[1] == ("killed", -signal.SIGKILL)
    for kind, said in (found[0], found[2]):
        assert kind == "error" and said.startswith("RankError: Rank ")


def claims(folder):
    trainSAE(planted(2), CONFIGS[0], 2, save_dir=folder, **OWN)


def test_what_rank_zero_refuses_ends_all(tmp_path):
    (tmp_path / "trainer_0").mkdir()
    (_, first), (_, second) = run_ranks(2, claims, tmp_path)
    assert first.startswith("ConfigError") and second.startswith("RankError: Rank 0 ended the run")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["trainer_0"]
    assert issubclass(RankError, Exception)
