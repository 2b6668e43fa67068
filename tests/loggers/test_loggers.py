import json
import logging

import pytest

from dictionary_learning.loggers import (
    AnomalyLogger,
    ConsoleLogger,
    JSONLLogger,
    LoggerGroup,
    TensorBoardLogger,
    WandbLogger,
    read_history,
)

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


def test_console_on_a_terminal_shows_bars(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    logger = ConsoleLogger(20, ["a", "b"])
    logger.advance(10, 100)
    logger.log(FIGURES, 10, 100)
    logger.close()
    shown = capsys.readouterr().err
    assert "10/20" in shown
    assert "a: FVU 0.5000" in shown


def test_group_closes_all_even_when_one_fails():
    class Failing:
        def log(self, figures, step, tokens):
            pass

        def close(self):
            raise OSError("full")

    class Counting(Failing):
        closed = 0

        def close(self):
            self.closed += 1

    counting = Counting()
    with pytest.raises(OSError, match="full"):
        LoggerGroup([Failing(), counting]).close()
    assert counting.closed == 1


def test_tensorboard_writes_what_was_logged(tmp_path):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path)
    logger.log({"a": {"fvu": 0.5}}, 10, 100)
    logger.close()
    events = tensorboard.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a/fvu")] == [(10, 0.5)]


def test_wandb_opens_a_run_for_each_dictionary(monkeypatch):
    """Against a stand-in with wandb's names: the real one is tried by hand, offline."""
    import sys
    import types

    runs = {}

    class Run:
        def __init__(self, **options):
            self.options, self.lines, self.export = options, [], False
            runs[options["name"]] = self

        def log(self, values, step):
            self.lines.append((step, values))

        def finish(self):
            self.export = True

    stand_in = types.ModuleType("wandb")
    stand_in.init = lambda **options: Run(**options)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    logger = WandbLogger({"a": {"k": 3}, "b": {"k": 4}}, project="p")
    logger.log(FIGURES, 10, 100)
    logger.close()
    assert runs["a"].lines == [(10, {"fvu": 0.5, "l0": 3.0, "tokens": 100})]
    assert runs["b"].options["config"] == {"k": 4}
    assert all(run.export for run in runs.values())


@pytest.mark.parametrize(
    ("module", "build"),
    [("wandb", lambda: WandbLogger({})), ("torch.utils.tensorboard", lambda: TensorBoardLogger("x"))],
)
def test_missing_package_says_how_to_install_it(monkeypatch, module, build):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'dictionary-learning\["):
        build()


def test_alarm_warns_once_for_each_rise(caplog):
    alarm = AnomalyLogger()
    for step, count in enumerate([0.0, 2.0, 2.0, 5.0]):
        alarm.log({"a": {"nonfinite_tokens": count, "loss": 1.0}, "b": {"loss": 1.0}}, step, 0)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "Step 1, a: so far 2 tokens had a NaN" in messages[0] and "so far 5" in messages[1]
