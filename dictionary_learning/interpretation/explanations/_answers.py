"""Answers on disk: a line each, only ever appended, so that nothing is asked for twice."""

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any, TextIO, cast

logger = logging.getLogger(__name__)

ANSWERS = "answers.jsonl"


class Answers:
    """The answers in a folder, by the key of their question.

    A last line that a killed process left incomplete is skipped. Lines of other processes may stand
    between.
    """

    def __init__(self, folder: Path | None, name: str = ANSWERS):
        self.path = None if folder is None else folder / name
        self._known: dict[str, str] = {}
        self._file: TextIO | None = None
        if self.path is not None and self.path.is_file():
            self._read(self.path)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str) -> str:
        """Returns an answer; empty if there is none."""
        return self._known.get(key, "")

    def add(self, key: str, answer: str, about: dict[str, Any]) -> None:
        """Keeps an answer, which is in the file when this returns."""
        self._known[key] = answer
        if self.path is None:
            return
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_torn = _is_torn(self.path)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (open as long as the run)
            self._file.write("\n" if is_torn else "")
        # ASCII: halves of surrogate pairs, which models may write, are in no UTF-8 file
        self._file.write(json.dumps({"key": key, **about, "answer": answer}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, path: Path) -> None:
        n_broken = 0
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                entry: Any = None
                with contextlib.suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
                key, answer = fields.get("key"), fields.get("answer")
                if isinstance(key, str) and isinstance(answer, str):
                    self._known[key] = answer
                elif line.strip():
                    n_broken += 1
        if n_broken:
            logger.warning("'%s' has %d broken lines; what they answered is asked for again.", path, n_broken)


def _is_torn(path: Path) -> bool:
    """Returns whether a file ends within a line."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
