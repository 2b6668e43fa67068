"""How far something long has come: a bar in a terminal, elsewhere a line every half minute.

Both are messages of the level INFO: the command line shows them, and a Python program that logs
such messages does.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from dictionary_learning._plain import as_duration

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0
_STEPS_OF_A_RATE = 2
"""Steps after the first that a rate is taken from. The first may be small, and warms up."""
_BARS = {
    "datasets": "progress_bars",
    "transformers.utils.logging": "progress_bar",  # which switches the next one too
    "huggingface_hub.utils": "progress_bars",
}
"""Modules that show bars, with the name of these in their functions."""


def shows_bars() -> bool:
    """Returns whether bars can be shown: in a terminal or a notebook.

    In a file they would be thousands of lines.
    """
    return not _is_quiet() and (sys.stderr.isatty() or _is_notebook())


def say(message: str) -> None:
    """Logs a line; where a script has not set up logging, writes it to standard error."""
    if logger.isEnabledFor(logging.INFO):
        logger.info("%s", message)
    elif not logging.root.handlers and not _is_quiet():
        sys.stderr.write(f"{message}\n")


def add_note(error: BaseException, note: str) -> None:
    """Adds a line to the traceback of an error; before Python 3.11 it is said at once."""
    getattr(error, "add_note", say)(note)


@contextlib.contextmanager
def other_bars(what: str) -> Iterator[None]:
    """Switches bars of other packages off, where none can be shown: a line says what is done.

    Args:
        what: what is done, as "Loading gpt2".
    """
    if shows_bars():
        yield
        return
    logger.info("%s.", what)
    were_on = {name: _are_on(sys.modules[name]) for name in _BARS if name in sys.modules}
    for name in were_on:
        _switch(name, False)
    try:
        yield
    finally:
        for name, is_on in were_on.items():
            _switch(name, is_on)


def _are_on(module: Any) -> bool:
    asked = getattr(module, "is_progress_bar_enabled", None)
    return not module.are_progress_bars_disabled() if asked is None else asked()


def _switch(name: str, on: bool) -> None:
    getattr(sys.modules[name], f"{'enable' if on else 'disable'}_{_BARS[name]}")()


def _is_notebook() -> bool:
    """Returns whether a kernel runs this; its package is also imported where none runs."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _is_quiet() -> bool:
    """Returns whether someone asked for warnings only, as `--quiet` does."""
    return logging.getLogger("dictionary_learning").level > logging.INFO


class Progress:
    """Shows what is done, the rate, and the time left; to be used as a context manager.

    Args:
        what: what is done, as "filling the buffer".
        total: how much there is to do; None if that is not known.
        unit: what is counted, as "tokens".
    """

    def __init__(self, what: str, total: int | None, unit: str):
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self._last_line = time.monotonic()
        self._n_steps, self._first_done, self._first_end = 0, 0, self._last_line
        self._bar: Any = None
        if shows_bars():
            self._bar = tqdm(total=total, desc=what, unit=f" {unit}", unit_scale=True, dynamic_ncols=True, leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._bar is not None:
            self._bar.close()
        if isinstance(error, KeyboardInterrupt):
            add_note(error, f"Interrupted while {self._counted()}. What was saved before stays.")

    def advance(self, n: int = 1) -> None:
        """Says that more is done."""
        self.done += n
        self._n_steps += 1
        if self._bar is not None:
            self._bar.update(n)
            return
        now = time.monotonic()
        if self._n_steps == 1:
            self._first_done, self._first_end = n, now
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            say(self._line(now - self._first_end))

    def _line(self, seconds: float) -> str:
        rate = (self.done - self._first_done) / max(seconds, 1e-9)
        shown, total = self._counted(), self._total()
        if not rate or self._n_steps <= _STEPS_OF_A_RATE:
            return shown
        shown += f", {rate:,.{1 if rate < 10 else 0}f} a second" if rate >= 1 else f", {as_duration(1 / rate)} each"
        return shown if total is None else f"{shown}, {as_duration((total - self.done) / rate)} left"

    def _counted(self) -> str:
        total = self._total()
        return f"{self.what}: {self.done:,}{'' if total is None else f' of {total:,}'} {self.unit}"

    def _total(self) -> int | None:
        """Returns how much there is to do; None if more is done than was known of."""
        return None if self.total is None or self.done > self.total else self.total
