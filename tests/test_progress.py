"""What shows how far something long has come."""

import logging
import os
import pty
import select
import struct
import sys
import termios
import time
import types

import pytest

from dictionary_learning import _progress
from dictionary_learning._progress import Progress, other_bars
from tests.processes import run_script, start_script


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when it is told to."""
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def run(clock, steps, seconds, total):
    with Progress("reading", total, "tokens") as progress:
        for _ in range(steps):
            clock[0] += seconds
            progress.advance(100)


def test_a_line_every_half_minute_says_rate_and_time_left(clock, caplog):
    caplog.set_level(logging.INFO, "dictionary_learning")
    run(clock, 12, 10.0, 10_000)
    assert [record.getMessage() for record in caplog.records] == [
        "reading: 300 of 10,000 tokens, 10 a second, 16 min 10 s left",
        "reading: 600 of 10,000 tokens, 10 a second, 15 min 40 s left",
        "reading: 900 of 10,000 tokens, 10 a second, 15 min 10 s left",
        "reading: 1,200 of 10,000 tokens, 10 a second, 14 min 40 s left",
    ]


def test_without_a_total_there_is_no_time_left_and_more_than_the_total_is_no_fault(clock, caplog):
    caplog.set_level(logging.INFO, "dictionary_learning")
    run(clock, 3, 100.0, None)
    run(clock, 3, 100.0, 50)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "reading: 100 tokens" and lines[2] == lines[-1] == "reading: 300 tokens, 1.0 a second"


def test_time_left_is_of_steps_of_full_size_after_the_first(clock, caplog):
    caplog.set_level(logging.INFO, "dictionary_learning")
    with Progress("reading", 100, "rows") as progress:
        for n, seconds in ((4, 60.0), (32, 40.0), (32, 40.0)):
            clock[0] += seconds
            progress.advance(n)
    assert caplog.messages == [
        "reading: 4 of 100 rows", "reading: 36 of 100 rows", "reading: 68 of 100 rows, 1.2 s each, 40.0 s left",
    ]  # fmt: skip


def test_an_interrupt_says_where_and_stays_one(caplog):
    caplog.set_level(logging.INFO, "dictionary_learning")
    with pytest.raises(KeyboardInterrupt) as raised, Progress("reading", 300, "tokens") as progress:
        progress.advance(100)
        raise KeyboardInterrupt
    said = [*getattr(raised.value, "__notes__", ()), *caplog.messages]
    assert said == ["Interrupted while reading: 100 of 300 tokens. What was saved before stays."]


def test_what_is_slow_has_a_time_for_each(clock, caplog):
    caplog.set_level(logging.INFO, "dictionary_learning")
    run(clock, 4, 1230.0, 500)
    assert caplog.messages[2:] == [
        "reading: 300 of 500 tokens, 12.3 s each, 41 min 0 s left", "reading: 400 of 500 tokens, 12.3 s each, 20 min 30 s left",
    ]  # fmt: skip


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("were_on", [False, True])
def test_bars_of_other_packages_are_off_outside_of_a_terminal(is_terminal, were_on, monkeypatch, caplog):
    import datasets
    import huggingface_hub.utils as hub
    import transformers.utils.logging as transformers

    def are_on():
        return (
            transformers.is_progress_bar_enabled(), not hub.are_progress_bars_disabled(),
            not datasets.are_progress_bars_disabled(),
        )  # fmt: skip

    def switch(on):
        (transformers.enable_progress_bar if on else transformers.disable_progress_bar)()
        (datasets.enable_progress_bars if on else datasets.disable_progress_bars)()

    before = are_on()[0]
    monkeypatch.setattr(_progress, "shows_bars", lambda: is_terminal)
    caplog.set_level(logging.INFO, "dictionary_learning")
    try:
        switch(were_on)
        with other_bars("Loading gpt2"):
            assert are_on() == ((were_on,) * 3 if is_terminal else (False,) * 3)
        assert are_on() == (were_on,) * 3
    finally:
        switch(before)
    assert caplog.messages == ([] if is_terminal else ["Loading gpt2."])


def test_what_is_short_and_who_asks_for_nothing_see_nothing(clock, caplog):
    caplog.set_level(logging.INFO, "dictionary_learning")
    run(clock, 29, 1.0, 10_000)
    caplog.set_level(logging.WARNING, "dictionary_learning")
    run(clock, 12, 10.0, 10_000)
    assert not caplog.records


SCRIPT = """
import logging, time
from dictionary_learning._progress import Progress
logging.basicConfig(level=logging.INFO)
with Progress("reading", 300, "tokens") as progress:
    for _ in range(3):
        time.sleep(0.15)
        progress.advance(100)
print("ended")
"""


@pytest.mark.parametrize("columns", [0, 3, 80])
def test_a_terminal_of_any_width_has_a_bar_that_goes_away(columns):
    import fcntl

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = start_script(SCRIPT, outputs=(os.ttyname(theirs), os.ttyname(theirs)))
    select.select([ours], [], [], 60)  # the process has opened it
    os.close(theirs)
    shown, end = b"", time.monotonic() + 60
    while time.monotonic() < end:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    process.join()
    os.close(ours)
    assert process.exitcode == 0 and shown.rstrip().endswith(b"ended")
    assert b"Traceback" not in shown and (columns < 80 or b"reading" in shown)


TRAINING = """
import sys, torch
{setup}
from dictionary_learning import trainSAE
data = [torch.randn(64, 8) for _ in range(4)]
trainSAE(data, {{"trainer": "top_k", "k": 2, "dict_size": 16}}, steps=4, progress={progress})
"""


@pytest.mark.parametrize(
    ("setup", "progress", "is_shown"),
    [
        ("", True, True),
        ("", False, False),
        ("import logging; logging.basicConfig(level='INFO')", True, True),
        ("import logging; logging.basicConfig(level='WARNING')", True, False),
        ("import logging; logging.getLogger('dictionary_learning').setLevel('WARNING')", True, False),
    ],
)
def test_a_script_shows_its_run_unless_it_says_otherwise(setup, progress, is_shown):
    script = TRAINING.format(setup=setup, progress=progress)
    done = run_script(script)
    assert ("step 4 of 4" in done.stderr) == is_shown and done.stderr.count("step 4 of 4") <= 1
    assert not done.stdout


def test_a_notebook_has_bars(monkeypatch):
    shell = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "ipykernel", object())  # imported, and nothing runs in it
    assert not _progress.shows_bars()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))  # as in a terminal
    assert not _progress.shows_bars()
    shell.kernel = object()
    assert _progress.shows_bars()
    monkeypatch.setattr(logging.getLogger("dictionary_learning"), "level", logging.WARNING)
    assert not _progress.shows_bars()
