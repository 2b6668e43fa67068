import json
import logging

import pytest

from dictionary_learning import trainSAE
from dictionary_learning.loggers import (
    ConsoleLogger,
    JSONLLogger,
    LoggerGroup,
    TensorBoardLogger,
    WandbLogger,
    read_history,
)
from dictionary_learning.loggers._base import Evaluated
from tests import tiny

FIGURES = {"a": {"fvu": 0.5, "l0": 3.0}, "b": {"fvu": float("nan"), "l0": 4.0}}


def test_jsonl_round_trips_and_is_strict(tmp_path):
    logger = JSONLLogger(tmp_path / "deep" / "metrics.jsonl")
    logger.log(FIGURES, 10, 100)
    text = (tmp_path / "deep" / "metrics.jsonl").read_text()  # on disk before it is closed
    assert "NaN" not in text
    logger.close()
    assert json.loads(text)["dictionaries"]["b"]["fvu"] is None
    assert read_history(logger.path, "a") == [{"step": 10, "tokens": 100, "fvu": 0.5, "l0": 3.0}]
    assert read_history(logger.path, "c") == []


def test_console_without_a_terminal_writes_lines(caplog):
    logger = ConsoleLogger(20, ["a", "b"])
    with caplog.at_level(logging.INFO):
        logger.advance(10, 100)
        logger.log(FIGURES, 10, 100)
        logger.log(FIGURES, 11, 110)  # too soon for another
        logger.log(FIGURES, 20, 200)  # but the last is always shown
    logger.close()
    shown = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0] for line in shown] == ["step 10 of 20", "step 20 of 20"]
    assert "a: FVU 0.5000  L0 3.0" in shown[0]
    assert "tokens/s" in shown[0]


def test_of_many_dictionaries_the_console_shows_the_best_and_the_worst(caplog, monkeypatch, capsys):
    figures = {f"a{i}": {"fvu": 0.1 * (i + 1), "l0": 3.0} for i in range(7)} | {"bad": {"fvu": float("nan")}}
    told = "8 dictionaries: FVU 0.1000 (best, a0) to nan (worst, bad)"
    with caplog.at_level(logging.INFO):
        ConsoleLogger(2000, list(figures)).log(figures, 2000, 100)
        ConsoleLogger(2000, list(figures)).log({name: {} for name in figures}, 2000, 100)
        ConsoleLogger(2000, list(figures)).log_evaluation({n: Evaluated(f, None) for n, f in figures.items()}, 10, 100)
    first, second, third = [record.getMessage() for record in caplog.records]
    assert first.startswith("step 2,000 of 2,000") and first.splitlines()[1:] == [f"    {told}"]
    assert "8 dictionaries: no step yet" in second and third == f"held out, step 10: {told}"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    logger = ConsoleLogger(20, list(figures))
    logger.log(figures, 10, 100)
    logger.close()
    assert told in capsys.readouterr().err and len(logger._bars) == 2


def test_console_on_a_terminal_shows_bars(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    logger = ConsoleLogger(20, ["a", "b"])
    logger.advance(10, 100)
    logger.log(FIGURES, 10, 100)
    logger.close()
    shown = capsys.readouterr().err
    assert "10/20" in shown
    assert "a: FVU 0.5000" in shown


class Failing:
    """Fails when it logs for the n-th time, or when it is closed."""

    def __init__(self, at: int | None = None, in_close: bool = False):
        self.at, self.in_close, self.steps, self.closed = at, in_close, [], 0

    def log(self, figures, step, tokens):
        self.steps.append(step)
        if len(self.steps) == self.at:
            raise OSError("full")

    def close(self):
        self.closed += 1
        if self.in_close:
            raise ConnectionError("no network")


@pytest.mark.parametrize("options", [{"at": 1}, {"at": 3}, {"in_close": True}, {"at": 2, "in_close": True}])
def test_a_logger_that_fails_costs_one_warning_and_nothing_else(options, caplog):
    failing, other = Failing(**options), Failing()
    group = LoggerGroup([failing, other])
    for step in range(5):
        group.log(FIGURES, step, step)
    group.close()
    assert other.steps == [0, 1, 2, 3, 4] and other.closed == 1
    assert len(failing.steps) == (options.get("at") or 5)
    assert len(caplog.records) == 1 and "The logger Failing" in caplog.text


def test_training_survives_its_logger(caplog):
    data = list(tiny.Planted(dim=8).batches(6, 64))
    failing = Failing(at=2, in_close=True)
    (dictionary,) = trainSAE(data, {"trainer": "top_k", "k": 2, "dict_size": 32}, 6, loggers=[failing], progress=False)
    assert dictionary.W_dec.isfinite().all() and len(failing.steps) == 2


def test_console_shows_dictionaries_without_a_step(caplog):
    """As with more batches to accumulate than lie between two lines."""
    caplog.set_level(logging.INFO, "dictionary_learning")
    ConsoleLogger(20, ["a", "b"]).log({"a": {}, "b": {"l0": 2.0}}, 1, 10)
    assert "a: no step yet" in caplog.text and "b: L0 2.0" in caplog.text


def test_history_skips_broken_lines(tmp_path, caplog):
    logger = JSONLLogger(tmp_path / "metrics.jsonl")
    logger.log(FIGURES, 10, 100)
    logger.close()
    whole = logger.path.read_text()
    logger.path.write_text(whole[: len(whole) // 2] + "\n" + whole + "[]\n" + whole[:7])
    assert [entry["step"] for entry in read_history(logger.path, "a")] == [10]
    assert "3 broken lines" in caplog.text


def test_an_older_file_stays_until_something_is_logged(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("old")
    logger = JSONLLogger(tmp_path / "metrics.jsonl")
    assert (tmp_path / "metrics.jsonl").read_text() == "old"
    logger.close()


def test_tensorboard_writes_what_was_logged(tmp_path):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    logger.log({"a": {"fvu": 0.5}}, 10, 100)
    logger.close()
    events = tensorboard.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a/fvu")] == [(10, 0.5)]


def test_tensorboard_hides_what_was_logged_after_the_step_of_a_resume(tmp_path):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps, resumed in (([1, 2, 3], None), ([3, 4], 2)):
        logger = TensorBoardLogger(tmp_path)
        if resumed:
            logger.resume(resumed, logger.state_dict())
        for step in steps:
            logger.log({"a": {"fvu": step / 10}}, step, 0)
        logger.close()
    events = tensorboard.EventAccumulator(str(tmp_path)).Reload()
    assert [e.step for e in events.Scalars("a/fvu")] == [1, 2, 3, 4]


@pytest.fixture
def wandb_runs(monkeypatch):
    """A stand-in with wandb's names: the real one is tried by hand, offline."""
    import sys
    import types

    runs = {}

    class Run:
        def __init__(self, **options):
            self.options, self.lines, self.export = options, [], False
            self.id = options.get("id") or f"id of {options['name']}"
            runs[options["name"]] = self

        def log(self, values, step):
            self.lines.append((step, values))

        def finish(self):
            self.export = True

    stand_in = types.ModuleType("wandb")
    stand_in.init = lambda **options: Run(**options)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return runs


def test_wandb_goes_on_with_the_run_of_a_resumed_dictionary(wandb_runs, tmp_path):
    from dictionary_learning import trainSAE
    from tests.tiny import Planted

    config = {"trainer": "top_k", "k": 3, "dict_size": 96}
    for steps in (4, 8):
        trainSAE(
            list(Planted().batches(8, 64)), config, steps, save_dir=tmp_path, checkpoint_steps=4, log_steps=1,
            use_wandb=True, resume="auto", progress=False, device="cpu", allow_changed=["steps", "warmup_steps", "decay_start"],
        )  # fmt: skip
    (run,) = wandb_runs.values()
    assert run.options["id"] == f"id of {run.options['name']}" and run.options["resume"] == "allow"
    assert [step for step, _ in run.lines] == [5, 6, 7, 8]


def test_wandb_opens_a_run_for_each_dictionary(wandb_runs):
    runs = wandb_runs
    logger = WandbLogger({"a": {"k": 3}, "b": {"k": 4}}, project="p")
    logger.log(FIGURES, 10, 100)
    logger.close()
    ((step, line),) = runs["a"].lines
    assert step == 10 and line.items() >= {"fvu": 0.5, "l0": 3.0, "tokens": 100}.items()
    assert runs["b"].options["config"] == {"k": 4}
    assert all(run.export for run in runs.values())


@pytest.mark.parametrize(
    ("module", "build"),
    [("wandb", lambda: WandbLogger({})), ("torch.utils.tensorboard", lambda: TensorBoardLogger("x"))],
)
def test_missing_package_says_how_to_install_it(monkeypatch, module, build):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match="pip install "):
        build()


def test_a_logger_that_changes_its_figures_changes_no_other_s():
    class Clearing:
        def log(self, figures, step, tokens):
            for values in figures.values():
                values.clear()
            figures.clear()

        def close(self):
            pass

    class Keeping(Clearing):
        def log(self, figures, step, tokens):
            self.figures = figures

    last, figures = Keeping(), {"a": {"fvu": 0.5}}
    LoggerGroup([Clearing(), Clearing(), last]).log(figures, 1, 10)
    assert last.figures == figures == {"a": {"fvu": 0.5}}


def test_tensorboard_opens_its_file_when_it_logs(tmp_path):
    pytest.importorskip("tensorboard")
    logger = TensorBoardLogger(tmp_path / "tb")
    logger.close()
    assert not (tmp_path / "tb").exists()
    logger.log({"a": {"fvu": 0.5}}, 1, 10)
    logger.close()
    assert list((tmp_path / "tb").glob("events.out.tfevents.*"))
