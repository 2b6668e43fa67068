"""A run that is finished says so, is not evaluated twice, and is made longer; an evaluation can be stopped."""

import json
import logging
import shlex
import signal
import time
import weakref

import pytest
import yaml

import dictionary_learning.evaluation as evaluation
from dictionary_learning._stop_request import ending_at_once
from dictionary_learning.cli import STOPPED, main
from dictionary_learning.cli._parser import without
from dictionary_learning.cli._train import _step_of_report
from dictionary_learning.errors import Stopped
from dictionary_learning.sweeps import _run as of_sweeps
from dictionary_learning.trainers import TrainerTopK
from tests.cli.test_cli import arguments, folder, train  # noqa: F401  (a fixture)

OPTIONS = ["--layers", "1", "--k", "2", "--checkpoint-steps", "5", "--log-steps", "1", "--dtype", "float32"]
LONGER = ["--allow-changed", "steps", "warmup_steps", "decay_start"]


def resume(folder, *options):  # noqa: F811
    instead = {"--overwrite": False} | {word: True for word in options if word in ("--n-tokens",)}
    return main([*without(arguments(folder), instead), *OPTIONS, "--resume", *options])


def stopping(*_, **__):
    signal.raise_signal(signal.SIGTERM)
    raise AssertionError("the signal was not noticed")


def seconds(run):
    return [json.loads(line)["seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_run_is_neither_trained_nor_evaluated_again(folder, caplog, capsys, monkeypatch):  # noqa: F811
    caplog.set_level(logging.INFO)
    run, tokens = folder / "run", 20 * 32
    assert train(folder, *OPTIONS) == 0
    shown = capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate_dictionaries", stopping)
        assert resume(folder) == 0
    assert capsys.readouterr().out == shown
    assert "finished already, at step 20" in caplog.text and "give a larger --n-tokens" in caplog.text
    before = seconds(run)
    caplog.clear()
    assert resume(folder, *LONGER, "--n-tokens", str(2 * tokens)) == 0
    assert "Schedules are those of 40 steps from here on, and were of 20. Learning rates:" in caplog.text
    after = seconds(run)
    assert after[:20] == before and after == sorted(after) and len(after) == 40
    assert "No step was made" not in caplog.text
    (run / "report.json").unlink()  # what is missing is made
    assert resume(folder, "--n-tokens", str(2 * tokens)) == 0
    assert (run / "report.json").is_file()


class Finalized:
    """Gets a signal in a finalizer, where Python drops what is raised."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("where", ["finalizer", "weak reference"])
@pytest.mark.parametrize("is_short", [False, True])
def test_a_signal_that_comes_where_errors_are_dropped_is_not_lost(where, is_short):
    with pytest.raises(Stopped, match="Got SIGTERM"), ending_at_once():
        if where == "finalizer":
            Finalized()
        else:
            _of_weakref(signal.raise_signal)(signal.SIGTERM)
        if not is_short:
            time.sleep(5)
            raise AssertionError("the signal was not noticed")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def _of_weakref(function):
    """Returns a function whose code is, by its file, of the module `weakref`."""
    found = {"function": function}
    exec(compile("def call(*given):\n    function(*given)", weakref.__file__, "exec"), found)
    return found["call"]


def test_a_signal_in_the_evaluation_of_a_run_says_what_is_saved(folder, caplog, monkeypatch):  # noqa: F811
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate_dictionaries", stopping)
        assert train(folder, *OPTIONS) == STOPPED
    last = caplog.records[-1].getMessage()
    assert "Got SIGTERM. The dictionaries are saved in" in last
    words = shlex.split(last.splitlines()[-1])
    told = ["--model", str(folder / "model"), "--data", str(folder / "text.jsonl")]  # not in the current folder
    assert words[1:7] == ["evaluate", str(folder / "run"), *told]
    assert main(words[1:]) == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_in_the_evaluation_of_a_sweep_says_what_goes_on(folder, caplog, capsys, monkeypatch):  # noqa: F811
    told = {"model": str(folder / "model"), "data": str(folder / "text.jsonl"), "layers": [1], "dtype": "float32"}
    told |= {
        "ctx_len": 16,
        "n_ctxs": 16,
        "batch_size": 32,
        "n_tokens": 320,
        "n_eval_tokens": 64,
        "n_fidelity_tokens": 32,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump({**told, "methods": {"top_k": {"k": [2, 3], "dict_size": 48}}}))
    with monkeypatch.context() as patch:
        patch.setattr(of_sweeps, "_evaluated", stopping)
        assert main(["sweep", str(folder / "sweep.yaml"), "--save-dir", str(folder / "s")]) == STOPPED
    assert f"The dictionaries are saved in '{folder}/s/group_0'" in caplog.text
    words = shlex.split(caplog.records[-1].getMessage().splitlines()[-1])
    assert words[-3:] == ["--save-dir", str(folder / "s"), "--resume"]
    caplog.set_level(logging.INFO)
    capsys.readouterr()
    assert main(words[1:]) == 0
    assert capsys.readouterr().out == f"{folder}/s/sweep.html\n"


@pytest.mark.parametrize("damage", ["{", "[]", '{"dictionaries": []}', '{"dictionaries": [{"history": []}]}'])
def test_a_damaged_report_is_none(tmp_path, damage):
    (tmp_path / "report.json").write_text(damage)
    assert _step_of_report(tmp_path) is None


def test_info_of_a_run_that_was_made_longer_shows_no_figures_of_before(folder, capsys, monkeypatch):  # noqa: F811
    run = str(folder / "run")
    assert train(folder, *OPTIONS) == 0
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate_dictionaries", stopping)
        assert resume(folder, *LONGER, "--n-tokens", str(2 * 20 * 32)) == STOPPED
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    capsys.readouterr()
    assert main(["info", run]) == 0
    shown = capsys.readouterr().out
    assert "40 of 40" in shown and "Figures are of the last training batch" in shown
    assert f"dictionary-learning evaluate {run}" in shown and "CE recovered" not in shown


@pytest.mark.parametrize("where", ["relative", "absolute"])
def test_the_command_that_goes_on_has_the_folder_as_it_was_given(folder, caplog, monkeypatch, where):  # noqa: F811
    """A run keeps its arguments, so another form of the path would be another byte."""
    monkeypatch.chdir(folder)
    place = "stopped" if where == "relative" else str(folder / "stopped")
    words = [*without(arguments(folder), {"--save-dir": True}), *OPTIONS, "--save-dir", place]
    update = TrainerTopK.update
    with monkeypatch.context() as patch:

        def stops(self, step, *given, **named):
            if step == 7:
                signal.raise_signal(signal.SIGTERM)
            return update(self, step, *given, **named)

        patch.setattr(TrainerTopK, "update", stops)
        assert main(words) == STOPPED
    going_on = shlex.split(caplog.records[-1].getMessage().splitlines()[-1])
    assert going_on[going_on.index("--save-dir") + 1] == place and going_on[-1] == "--resume"
    assert main(going_on[1:]) == 0
    assert main([*words[:-1], "whole" if where == "relative" else str(folder / "whole")]) == 0
    one, other = (
        json.loads((folder / name / "trainer_0" / "config.json").read_text()) for name in ("stopped", "whole")
    )
    assert one["run"].pop("save_dir") == place
    other["run"].pop("save_dir")
    assert one == other
