"""How far something long has come: a bar in a terminal, elsewhere a line every half minute.

Both are messages of the level INFO: the command line shows them, and a Python program that logs
such messages does.
"""

import logging
import sys
import time
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

from dictionary_learning._plain import as_duration

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 30.0


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


def _is_notebook() -> bool:
    """Returns whether a kernel runs this; an import of its package, as by a test, is not enough."""
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
        self._start = self._last_line = time.monotonic()
        self._bar: Any = None
        if shows_bars():
            self._bar = tqdm(total=total, desc=what, unit=f" {unit}", unit_scale=True, dynamic_ncols=True, leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._bar is not None:
            self._bar.close()

    def advance(self, n: int = 1) -> None:
        """Says that more is done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            say(self._line(now - self._start))

    def _line(self, seconds: float) -> str:
        rate = self.done / max(seconds, 1e-9)
        of = "" if self.total is None else f" of {self.total:,}"
        shown = f"{self.what}: {self.done:,}{of} {self.unit}, {rate:,.{1 if rate < 10 else 0}f} a second"
        if self.total is None or not rate:
            return shown
        return f"{shown}, {as_duration(max(self.total - self.done, 0) / rate)} left"
