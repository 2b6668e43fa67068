"""What a command writes: results to standard output, for people or as JSON."""

import contextlib
import contextvars
import json
import os
import sys
from collections.abc import Generator, Iterable, Sequence
from typing import Any

as_json: contextvars.ContextVar[bool] = contextvars.ContextVar("as_json", default=False)
"""Whether results are written as JSON."""


def write_line(text: str) -> None:
    """Writes a line of a result to standard output, unless its reader has left, as `head` does."""
    with _until_its_reader_leaves():
        sys.stdout.write(f"{text}\n")


def flush_results() -> None:
    """Hands over what was written, before the exit status is decided."""
    with _until_its_reader_leaves():
        sys.stdout.flush()


@contextlib.contextmanager
def _until_its_reader_leaves() -> Generator[None]:
    """Makes a closed pipe of standard output end the writing, and not what a command does."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_result(value: Any, lines: Iterable[str] | None = None) -> None:
    """Writes a result to standard output: as lines, or with `--json` as one JSON value.

    Args:
        value: the result as plain values.
        lines: the same for people; by default the value, or each value of a list.
    """
    if as_json.get():
        write_line(json.dumps(value, indent=2, default=str))
        return
    for line in lines if lines is not None else value if isinstance(value, list) else [value]:
        write_line(str(line))


def write_facts(value: Any, lines: Iterable[str]) -> None:
    """Writes what programs mostly read: as JSON, but as lines in a terminal without `--json`."""
    if as_json.get() or not sys.stdout.isatty():
        write_line(json.dumps(value, indent=2, default=str))
        return
    for line in lines:
        write_line(line)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows as lines, whose columns begin below one another."""
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
