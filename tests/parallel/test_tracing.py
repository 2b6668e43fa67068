"""Ranks that only trace, and others that train on what they send: the run of ranks that do both."""

import functools
import json
import logging
import os
import shutil
import signal

import pytest
import torch

from dictionary_learning import ActivationBuffer, ContextStream, load_dictionary, parallel, trainSAE
from dictionary_learning.cli import main
from dictionary_learning.errors import ConfigError, Interrupted
from dictionary_learning.parallel._division import overlapping
from dictionary_learning.trainers import TRAINERS
from tests import tiny
from tests.parallel.ranks import results, run_ranks
from tests.parallel.test_runs import CONFIGS, OWN, loaded

SPREAD = {"data": "data", "dictionary": "dictionary", "latent": "latent", "ends": "data"}
"""What is run, and its placement; "ends" until the text has ended."""
STEPS = 6
CONFIG = {**CONFIGS[0], "dead_feature_threshold": 200}


class Watched(ActivationBuffer):
    """A buffer that does something when its n-th batch is taken from it, on a rank that traces."""

    n = 0

    def __next__(self):
        Watched.n += 1
        if Watched.n == 3 and (number := os.environ.get("TRACER_GETS")):
            os.kill(os.getpid(), int(number))
        return super().__next__()


def text(n_documents=30, tracing=None, **options):
    """Returns a buffer, which a rank that trains must not build."""
    rank, size = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    assert tracing is None or rank >= size - tracing, "a rank that trains has loaded the model"
    sizes = {"n_ctxs": 8, "ctx_len": 16, "refresh_batch_size": 4, "out_batch_size": 8, **options}
    return Watched(tiny.documents(n_documents), loaded(), ["model.layers.0", "model.layers.1"], **sizes)


def trained(tracing, placement, steps=STEPS, n_documents=30, end_of_data="stop", config=CONFIG, **options):
    """Returns the weights of a run; none on a rank that traces."""
    build = functools.partial(text, n_documents, tracing, end_of_data=end_of_data)
    options = {"placement": placement, "tracing_ranks": tracing, **OWN, **options}
    return [dict(one.state_dict()) for one in trainSAE(build if tracing else build(), config, steps, **options)]


def runs(tracing, folder, names):
    logging.disable(logging.WARNING)
    found = {}
    for name in names:
        many = {"steps": 1000, "n_documents": 9, "seed": 5} if name == "ends" else {}
        found[name] = trained(tracing, SPREAD[name], save_dir=folder / f"{tracing} {name}", **many)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tracing")


@pytest.fixture(scope="module")
def two(folder):
    return results(2, runs, None, folder, list(SPREAD))


def same(found, wanted):
    assert len(found) == len(wanted)
    return all(torch.equal(one[name], each[name]) for one, each in zip(found, wanted, strict=True) for name in each)


@pytest.mark.parametrize(("tracing", "names"), [(1, list(SPREAD)), (2, ["latent", "ends"])])
def test_ranks_train_as_those_that_trace_themselves(two, folder, tracing, names):
    found = results(2 + tracing, runs, tracing, folder, names)
    for name in names:
        assert all(same(one[name], two[0][name]) for one in found[:2]), name
        assert all(one[name] == [] for one in found[2:])
        ours, theirs = (folder / f"{kind} {name}" for kind in (tracing, None))
        for number in range(len(two[0][name])):
            assert (ours / f"trainer_{number}/config.json").read_text() == (
                theirs / f"trainer_{number}/config.json"
            ).read_text()
            assert same([load_dictionary(ours / f"trainer_{number}").state_dict()], [two[0][name][number]])
        ours, theirs = (json.loads((place / "run.json").read_text()) for place in (ours, theirs))
        assert ours["run"] == theirs["run"] and ours["data"] == theirs["data"]


@pytest.mark.parametrize("tracing", [1, 2])
def test_one_rank_trains_on_what_one_or_two_others_trace(two, tracing, tmp_path):
    first, *others = results(1 + tracing, runs, tracing, tmp_path, ["dictionary"])
    # with several dictionaries on several ranks, all have the tokens of a step in the order of one process
    wanted = two[0]["dictionary"] if tracing == 2 else trained(None, "auto")
    assert same(first["dictionary"], wanted) and [one["dictionary"] for one in others] == [[]] * tracing


def resumed(tracing, folder, steps):
    """Starts a run, or goes on with it."""
    logging.disable(logging.WARNING)
    options = {"save_dir": folder, "checkpoint_steps": 50, "resume": "auto", "end_of_data": "repeat"}
    return trained(tracing, "data", steps, **options)


def stopped(folder, steps):
    if int(os.environ["RANK"]) == 2:
        os.environ["TRACER_GETS"] = str(int(signal.SIGTERM))
    try:
        return resumed(1, folder, steps)
    except Interrupted as error:
        return str(error), error.step


def test_a_signal_to_a_rank_that_traces_stops_all_and_the_run_goes_on_to_the_same_bits(tmp_path):
    steps, folder = 16, tmp_path / "run"
    found = results(3, stopped, folder, steps)
    assert len(set(found)) == 1 and 0 < found[0][1] < steps
    shutil.copytree(folder, tmp_path / "copy")
    whole, _ = results(2, resumed, None, tmp_path / "whole", steps)
    apart, *_ = results(3, resumed, 1, folder, steps)
    together, _ = results(2, resumed, None, tmp_path / "copy", steps)
    assert same(apart, whole) and same(together, whole)


def killed(kind):
    logging.disable(logging.WARNING)
    if kind == "tracer" and int(os.environ["RANK"]) == 2:
        os.environ["TRACER_GETS"] = str(int(signal.SIGKILL))

    class Dies(TRAINERS["top_k"]):
        def update(self, *given, **named):
            if self.step == 2 and kind == "trainer" and int(os.environ["RANK"]) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().update(*given, **named)

    trained(1, "data", 1000, end_of_data="repeat", config=Dies.Config(k=4, dict_size=96))


@pytest.mark.parametrize(("kind", "place"), [("tracer", 2), ("trainer", 1)])
def test_a_killed_rank_ends_the_others_with_an_error(kind, place):
    found = run_ranks(3, killed, kind)
    assert found.pop(place) == ("killed", -signal.SIGKILL)
    for what, said in found:
        assert what == "error" and said.startswith("RankError: Rank "), said


def refused(kind):
    logging.disable(logging.WARNING)
    if kind == "text":
        return trained(1, "data", 1000, n_documents=6, end_of_data="error")
    if kind == "evaluation":
        return trained(1, "data", evaluate_every=2, evaluation_data=tiny.documents(4))
    data = {
        "rows": [torch.randn(8, 32)] * 9,
        "contexts": lambda: ContextStream(tiny.documents(9), loaded(), "model.layers.1"),
        "broken": lambda: ActivationBuffer("missing.jsonl", loaded(), "model.layers.1"),
    }[kind]
    return trainSAE(data, CONFIG, 6, tracing_ranks=1, **OWN)


@pytest.mark.parametrize(
    ("kind", "trains", "traces"),
    [
        ("rows", "ConfigError: Got tracing_ranks with a list, for which", "ConfigError: Got tracing_ranks with a list"),
        ("contexts", "ConfigError: Got tracing_ranks with a ContextStream. Rows", "ConfigError: Got tracing_ranks"),
        ("broken", "DataError: ", "DataError: "),
        ("text", "DataExhaustedError: ", "DataExhaustedError: "),
        ("evaluation", "ConfigError: Got text as evaluation_data", "RankError: Rank 0 ended the run: ConfigError: Got"),
    ],
)
def test_what_cannot_be_traced_apart_is_said_on_all_ranks(kind, trains, traces):
    (_, first), (_, second) = run_ranks(2, refused, kind)
    assert first.startswith(trains) and second.startswith(traces)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_some_ranks_train_and_some_trace(n):
    with pytest.raises(ConfigError, match=f"Got tracing_ranks={n} in a job of 1 process"):
        trainSAE([torch.randn(8, 4)], CONFIG, 1, tracing_ranks=n, **OWN)


@pytest.mark.parametrize("n_training", [1, 2, 3, 5])
@pytest.mark.parametrize("n_tracing", [1, 2, 4, 6])
def test_each_share_is_traced_once_and_trained_on_once(n_training, n_tracing):
    n = parallel.n_shares(n_training + n_tracing, n_tracing)
    for times in (1, 3):  # a run may have more shares, if it was started on more ranks
        pairs = {(share // (n * times // n_training), share // (n * times // n_tracing)) for share in range(n * times)}
        assert pairs == set(overlapping(n_training, n_tracing))


def commanded(commands):
    logging.disable(logging.WARNING)
    assert [main(words) for words in commands] == [0] * len(commands)


def test_the_command_traces_apart_by_options_and_by_a_run_file(tmp_path):
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n\n".join(tiny.documents(60)))
    file = tmp_path / "run.yaml"
    file.write_text("tracing_ranks: 1\nplacement: latent\n")
    small = ["--layers", "1", "--n-tokens", "640", "--batch-size", "64", "--ctx-len", "16", "--n-ctxs", "8"]
    small += ["--refresh-batch-size", "4", "--k", "4", "--dict-size", "64", "--device", "cpu"]
    small += ["--n-eval-tokens", "100", "--n-fidelity-tokens", "50", "--n-resamples", "0"]
    asked = {
        "plain": ["--placement", "latent"],
        "shell": ["--tracing-ranks", "1", "--placement", "latent"],
        "file": ["--config", str(file)],
    }
    plain, *apart = (
        [
            "train",
            str(tmp_path / "model"),
            str(tmp_path / "text.txt"),
            *small,
            *more,
            "--save-dir",
            str(tmp_path / name),
        ]
        for name, more in asked.items()
    )
    results(2, commanded, [plain])
    results(3, commanded, apart)
    wanted, *found = (load_dictionary(tmp_path / name / "trainer_0").state_dict() for name in asked)
    assert all(same([one], [wanted]) for one in found)
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in asked]
    assert all(one["dictionaries"][0]["metrics"] == reports[0]["dictionaries"][0]["metrics"] for one in reports)
    assert all("tracing_ranks" in (tmp_path / name / "run.yaml").read_text() for name in ("shell", "file"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "Got --tracing-ranks 1 in a job of 1 process."),
        (["--evaluate-every", "3"], "processes that train have no model to read held-out text"),
        (["--trainer", "end_to_end"], "--tracing-ranks cannot move it to other processes"),
    ],
)
def test_the_command_refuses_what_cannot_be_traced_apart(more, said, caplog):
    assert main(["train", "model", "data.txt", "--tracing-ranks", "1", *more]) == 2
    assert said in caplog.text


def test_the_command_refuses_to_trace_for_a_cache(caplog):
    assert main(["train", "--cache", "folder", "--tracing-ranks", "1"]) == 2
    assert "Got --tracing-ranks with --cache, for which no language model runs" in caplog.text
