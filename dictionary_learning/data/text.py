"""Where text comes from: anything that gives one document after another.

`as_text_source` makes a `TextSource` of a list, an iterator, a file (`.txt`, `.jsonl`, either compressed with `.zst`),
a Hugging Face data set or its name. A source counts the documents that it has given, so that it can be resumed, and a part of it can be
held out.
"""

import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from dictionary_learning.data.source import TextSource
from dictionary_learning.errors import DataError, did_you_mean


def as_text_source(
    data: Any, *, text_column: str = "text", split: str = "train", streaming: bool = True, name: str | None = None
) -> TextSource:
    """Makes a `TextSource` of whatever holds text.

    Args:
        data: a source, a list or iterator of strings, a path to a `.txt`, `.jsonl` or such a file compressed with zstandard
            (`.zst`), the name of a data set on the Hugging Face hub, or a data set object.
        text_column: the column, or key, that holds the text.
        split: the split of a data set given by name.
        streaming: whether a data set given by name is streamed.
        name: what to call it.

    Raises:
        DataError: there is no such file or column, or nothing in it is text.
    """
    if isinstance(data, TextSource):
        return data
    if isinstance(data, (str, os.PathLike)):
        return _by_name(str(data), text_column, split, streaming)
    if hasattr(data, "column_names") and hasattr(data, "features"):
        from dictionary_learning.data.hub import dataset_source

        return dataset_source(data, text_column, name or "the data set")
    if isinstance(data, Iterator):
        return TextSource(lambda: data, name or f"the {type(data).__name__}", repeatable=False)
    if isinstance(data, Iterable):
        return TextSource(lambda: iter(data), name or f"the {type(data).__name__}")
    raise DataError(f"Got a {type(data).__name__} as data; give strings, a file, a data set, or the name of one.")


def file_source(path: str | os.PathLike, text_column: str = "text") -> TextSource:
    """Returns the documents of a text file, one a line, or of a JSON Lines file, one an object.

    Raises:
        DataError: the file is not there, or an object lacks the column; raised when that object is reached.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(
            f"There is no file '{path}'.{did_you_mean(path.name, there)} Give a .txt or .jsonl file, plain or .zst."
        )
    is_json = ".jsonl" in path.suffixes

    def documents() -> Iterator[str]:
        with closing(_open_text(path)) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _column(line, text_column, path, number) if is_json else line.rstrip("\n")

    return TextSource(documents, path.name)


def _by_name(name: str, text_column: str, split: str, streaming: bool) -> TextSource:
    path = Path(name).expanduser()
    suffixes = [s for s in path.suffixes if s != ".zst"]
    if suffixes and suffixes[-1] in (".txt", ".jsonl"):
        return file_source(path, text_column)
    if path.is_file():
        raise DataError(
            f"'{name}' is a file of an unknown kind; .txt and .jsonl are read, either plain or compressed with .zst."
        )
    from dictionary_learning.data.hub import hub_source

    return hub_source(name, text_column, split, streaming)


def _open_text(path: Path) -> io.TextIOWrapper:
    raw: Any = open(path, "rb")  # noqa: SIM115  (closed with the wrapper, by the caller)
    if path.suffix == ".zst":
        import zstandard

        raw = zstandard.ZstdDecompressor().stream_reader(raw, closefd=True, read_across_frames=True)
    return io.TextIOWrapper(raw, encoding="utf-8")


def _column(line: str, column: str, path: Path, number: int) -> Any:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"Line {number} of '{path}' is not JSON ({error}).") from error
    if not isinstance(record, dict):
        raise DataError(
            f"Line {number} of '{path}' is a {type(record).__name__}; an object with the key '{column}' is needed."
        )
    if column not in record:
        raise DataError(
            f"Line {number} of '{path}' has no '{column}'; it has: {', '.join(record) or 'nothing'}."
            f"{did_you_mean(column, record)} Set text_column to the one that holds the text."
        )
    return record[column]
