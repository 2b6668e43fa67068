"""Metrics in a file of JSON lines."""

import json
import logging
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from dictionary_learning._disk import settled
from dictionary_learning.loggers._base import Evaluated, Figures

logger = logging.getLogger(__name__)


class JSONLLogger:
    """Writes `{"step", "tokens", "seconds", "dictionaries": {name: metrics}}`, a line per `log`.

    An evaluation is a line of its own, whose metrics begin with "eval/"; it also has "density", a
    histogram for each dictionary. A value that is not finite becomes null. The file is opened when
    something is logged: an older one of the same path stays as it is until then.

    Args:
        path: the file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path, self._after_step = settled(path), 0
        self._file: TextIO | None = None
        self._start = time.monotonic()
        """When the run would have begun, had it made its earlier steps in one piece with these."""

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: the file is found by its path."""
        return {}

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Keeps the lines up to a step, and writes others after them, whose seconds go on."""
        self._after_step = step

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Writes a line, which is in the file when this returns."""
        self._write(step, tokens, {"dictionaries": _finite(figures)})

    def log_evaluation(self, evaluated: Mapping[str, Evaluated], step: int, tokens: int) -> None:
        """Writes a line, which is in the file when this returns."""
        figures = _finite({name: one.figures for name, one in evaluated.items()})
        self._write(
            step, tokens, {"dictionaries": figures, "density": {n: one.density for n, one in evaluated.items()}}
        )

    def _write(self, step: int, tokens: int, found: Mapping[str, Any]) -> None:
        if self._file is None:
            before = _lines_up_to(self.path, self._after_step)
            self._start -= json.loads(before[-1]).get("seconds", 0) if before else 0
            self._file = self._opened(before)
        elif not _is_at(self._file, self.path):
            logger.warning("'%s' was removed or replaced; it is written again.", self.path)
            self._file.seek(0)
            with self._file as lost:  # what was written can still be read
                self._file = self._opened(lost.readlines())
        line = {"step": step, "tokens": tokens, "seconds": round(time.monotonic() - self._start, 3), **found}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()  # a run that is killed keeps its metrics

    def _opened(self, lines: Iterable[str]) -> TextIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "w+", encoding="utf-8")  # noqa: SIM115  (open as long as the run)
        file.writelines(lines)
        return file

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _finite(figures: Figures) -> dict[str, dict[str, float | None]]:
    return {n: {k: v if math.isfinite(v) else None for k, v in f.items()} for n, f in figures.items()}


def _is_at(file: TextIO, path: Path) -> bool:
    """Returns whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def _lines_up_to(path: Path, step: int) -> list[str]:
    """Returns the complete lines of the steps up to one."""
    kept: list[str] = []
    n_broken = 0
    if step and path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                n_broken += 1
    if n_broken:
        logger.warning("'%s' has %d broken lines, which are left out of the log that goes on.", path, n_broken)
    return kept


def read_history(path: str | os.PathLike[str], name: str) -> list[dict[str, Any]]:
    """Returns one dictionary's metrics over a run: `{"step", "tokens", metric: value, ...}` each.

    Lines that are no complete JSON, as the last one of a run that was killed, are skipped with a
    warning.
    """
    history: list[dict[str, Any]] = []
    n_broken = 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line)
                if name in entry["dictionaries"]:
                    history.append({"step": entry["step"], "tokens": entry["tokens"], **entry["dictionaries"][name]})
            except (ValueError, KeyError, TypeError):
                n_broken += 1
    if n_broken:
        logger.warning("'%s' has %d broken lines, which are skipped.", path, n_broken)
    return history
