"""Figures in a file, a line of JSON for each time they are logged."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from dictionary_learning.loggers.base import Figures


class JSONLLogger:
    """Appends `{"step", "tokens", "seconds", "dictionaries": {name: figures}}` to a file; what is not finite is null.

    Args:
        path: the file; a new run begins it anew.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115  (open as long as the run)
        self._start = time.monotonic()

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Writes a line, at once on disk."""
        line = {
            "step": step,
            "tokens": tokens,
            "seconds": round(time.monotonic() - self._start, 3),
            "dictionaries": {n: {k: v if math.isfinite(v) else None for k, v in f.items()} for n, f in figures.items()},
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_history(path: str | os.PathLike, name: str) -> list[dict[str, Any]]:
    """Returns the figures of one dictionary over a run: `{"step", "tokens", figure: value, ...}` for each line."""
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return [
        {"step": line["step"], "tokens": line["tokens"], **line["dictionaries"][name]}
        for line in lines
        if name in line["dictionaries"]
    ]
