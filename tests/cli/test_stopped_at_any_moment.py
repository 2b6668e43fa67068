"""A signal at any moment of `train`, `sweep` and `benchmark` ends in one way, and says what goes on."""

import importlib
import json
import shlex
import signal
import time

import pytest
import yaml

import dictionary_learning.cli._evaluate as reports
import dictionary_learning.cli._train as command
import dictionary_learning.evaluation as evaluation
from dictionary_learning import load_dictionary, training
from dictionary_learning._provenance import RunRecord
from dictionary_learning._stop_request import ending_at_once
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.cli import STOPPED, main
from dictionary_learning.cli._parser import without
from dictionary_learning.cli._stopping import what_goes_on
from dictionary_learning.cli._train_options import TrainArguments
from dictionary_learning.loggers import LoggerGroup
from dictionary_learning.sweeps import _run as of_sweeps, _synthetic as of_benchmarks
from dictionary_learning.trainers import TrainerTopK
from dictionary_learning.training import RunOutput
from tests.cli.test_cli import arguments, folder  # noqa: F401  (a fixture)

MOMENTS = {
    "the model loads": (TrainArguments, "load"),
    "the data are made": (command, "make_source"),
    "trainers are made": (training, "training_jobs"),
    "the older run is removed": (training, "remove_run"),
    "the record is begun": (RunRecord, "__enter__"),
    "a step": (TrainerTopK, "update"),
    "the last part of a step": (TrainerTopK, "finish"),
    "dictionaries are saved": (RunOutput, "export"),
    "the record is completed": (RunRecord, "__exit__"),
    "logs are closed": (LoggerGroup, "close"),
    "the buffer is closed": (ActivationBuffer, "close"),
    "held-out text is found": (command, "held_out_contexts"),
    "the evaluation": (evaluation, "evaluate_dictionaries"),
    "the report": (reports, "report_on"),
}
STARTS = {
    "SIGTERM": (signal.SIGTERM, ["--k", "2"]),
    "Ctrl-C in a run over another": (signal.SIGINT, ["--k", "2", "--checkpoint-steps", "7", "--overwrite"]),
}


def signaled(patch, place, name, number):
    """Makes a function get a signal after its work, once."""
    function, sent = getattr(place, name), []

    def called(*given, **named):
        found = function(*given, **named)
        if not sent:
            sent.append(number)
            signal.raise_signal(number)
        return found

    patch.setattr(place, name, called)
    return sent


def words_that_go_on(caplog):
    words = shlex.split(caplog.records[-1].getMessage().splitlines()[-1])
    assert words[0] == "dictionary-learning"
    return words[1:]


@pytest.fixture(autouse=True)
def heard():
    """Ctrl-C as a shell's foreground has it: a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_stopped_goes_on(folder, tmp_path, caplog, monkeypatch, moment, start):  # noqa: F811
    (number, options), (place, name) = STARTS[start], MOMENTS[moment]
    monkeypatch.chdir(folder)  # evaluate reads what files name only here
    words = [*without(arguments(folder), {"--save-dir": True, "--overwrite": False}), "--layers", "1"]
    words += ["--dtype", "float32", "--n-resamples", "0", "--save-dir", str(tmp_path / "run")]
    if "--overwrite" in options:
        assert main([*words, "--k", "3"]) == 0
    elif name == "remove_run":
        pytest.skip("nothing is removed")
    with monkeypatch.context() as patch:
        sent = signaled(patch, place, name, number)
        assert main([*words, *options]) == STOPPED
    assert sent
    going_on = words_that_go_on(caplog)
    is_short = going_on[0] == "evaluate"
    assert is_short == (list(MOMENTS).index(moment) > list(MOMENTS).index("a step"))
    report = tmp_path / "run" / "report.json"
    report.unlink(missing_ok=True)
    assert main(going_on) == 0
    found = load_dictionary(tmp_path / "run" / "trainer_0")
    assert (found.k, found.info.config["trained"]["step"]) == (2, 20) and report.is_file()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == [
        signal.default_int_handler,
        signal.SIG_DFL,
    ]


EARLY = {
    "train": ["train", "model", "text.jsonl", "--save-dir", "run"],
    "sweep": ["sweep", "grid.yaml", "--save-dir", "grid"],
    "benchmark": ["benchmark", "synthetic", "--save-dir", "grid"],
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", EARLY)
def test_a_command_that_is_stopped_before_it_knows_its_options_is_given_again(name, number, monkeypatch, caplog):
    """As while packages are imported."""
    monkeypatch.setattr("dictionary_learning.cli.build_parser", lambda *_: signal.raise_signal(number))
    assert main(EARLY[name]) == STOPPED
    assert words_that_go_on(caplog) == EARLY[name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["cache", "contexts"])
def test_a_command_that_continues_says_so_at_any_moment(name, number, monkeypatch, caplog):
    monkeypatch.setattr("dictionary_learning.cli._run", lambda *_: signal.raise_signal(number))
    assert main([name, "model", "text.jsonl"]) == STOPPED
    assert caplog.messages[-1].endswith("The same command goes on.")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_a_module_is_imported(number, tmp_path, monkeypatch):
    """Some packages are not imported a second time in a process, and others take it for one that is missing."""
    name = f"module_with_signal_{number}"
    body = (
        f"import signal\ntry:\n    signal.raise_signal({int(number)})\nexcept BaseException:\n    pass\nwhole = True\n"
    )
    (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt), ending_at_once():
        found = importlib.import_module(name)
        assert found.whole
        time.sleep(5)
        raise AssertionError("the signal was not noticed")
    assert found.whole


def test_a_signal_that_a_process_ignores_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ending_at_once():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_run_that_goes_on_elsewhere_is_begun_again_from_there(tmp_path):
    told = TrainArguments(model="m", data="d", save_dir=str(tmp_path), resume_from="runs/first")
    assert what_goes_on(told, tmp_path, None) == ("", ["--save-dir", str(tmp_path), "--resume-from", "runs/first"])


GRIDS = {
    "sweep": ((TrainArguments, "load"), (of_sweeps, "trainSAE"), (of_sweeps, "_evaluated"), (of_sweeps, "write_sweep_report")),
    "benchmark": (
        (of_benchmarks, "as_case"), (of_sweeps, "trainSAE"), (of_benchmarks, "_scored"), (of_benchmarks, "_write_report"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "at"), [(name, n) for name in GRIDS for n in range(len(GRIDS[name]))], ids=lambda one: str(one)
)
def test_a_grid_that_is_stopped_goes_on(folder, tmp_path, caplog, monkeypatch, name, at):  # noqa: F811
    told = {"methods": {"top_k": {"k": [2, 3], "dict_size": 48}}, "n_tokens": 320, "n_eval_tokens": 64}
    if name == "sweep":
        told |= {"model": str(folder / "model"), "data": str(folder / "text.jsonl"), "layers": [1], "dtype": "float32"}
        told |= {"ctx_len": 16, "n_ctxs": 16, "batch_size": 32, "n_fidelity_tokens": 32}
    else:
        told |= {"case": "small", "seeds": [0]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(told))
    words = [name, *(["synthetic"] if name == "benchmark" else []), str(tmp_path / "grid.yaml")]
    with monkeypatch.context() as patch:
        assert signaled(patch, *GRIDS[name][at], signal.SIGTERM) == []
        assert main([*words, "--save-dir", str(tmp_path / "grid")]) == STOPPED
    assert main(words_that_go_on(caplog)) == 0
    assert json.loads((tmp_path / "grid" / "results.json").read_text())
