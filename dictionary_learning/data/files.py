"""Documents in files: one, a folder of them, or all that a pattern names."""

import contextlib
import glob
import json
from itertools import islice
from pathlib import Path
from typing import Any

from dictionary_learning.data.columns import ROWS_LOOKED_AT, ReadOptions, tokenized_like
from dictionary_learning.data.compression import COMPRESSIONS
from dictionary_learning.data.document import as_document
from dictionary_learning.data.lines import Lines, column_of, first_record, record_document
from dictionary_learning.data.memory_map import token_file_reader
from dictionary_learning.data.parquet import parquet_reader
from dictionary_learning.data.reading import Chained, Indexed, Reader
from dictionary_learning.data.source import Source, Tokenized
from dictionary_learning.errors import DataError, did_you_mean

KINDS = (".txt", ".jsonl", ".json", ".parquet", ".bin", ".npy")
_COMPRESSIBLE = (".txt", ".jsonl")
_READ = ".txt and .jsonl, either compressed with .zst or .gz, .json, .parquet, .bin and .npy"


def kind_of(path: Path) -> str | None:
    """Returns the suffix that says what is in a file, that of compression left out; None for no known kind."""
    kind = path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix
    known = _COMPRESSIBLE if path.suffix in COMPRESSIONS else KINDS
    return kind if kind in known else None


def is_pattern(name: str) -> bool:
    """Returns whether a name is a pattern over files."""
    return glob.has_magic(name)


def files_source(name: str, options: ReadOptions) -> Source:
    """Returns the documents of a file, of all files in a folder, or of all that a pattern names.

    Raises:
        DataError: there is no such file, or none of a known kind.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        paths = sorted(p for p in path.rglob("*") if p.is_file() and kind_of(p) and not _is_hidden(p, path))
    elif is_pattern(name) and not path.exists():
        paths = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file() and kind_of(p))
    else:
        return _of_one(path, options)
    if not paths:
        raise DataError(f"'{name}' names no file of a known kind; {_READ} are read.")
    found = [_reader(p, options) for p in paths]
    known = [tokenized for _, tokenized in found]
    if any(t is None for t in known) and not all(t is None for t in known):
        raise DataError(f"'{name}' names files of text and files of token ids. Give one kind, or mix them by `mix`.")
    tokenized = known[0] if known.count(known[0]) == len(known) else Tokenized()
    return Source(Chained([reader for reader, _ in found]), path.name or name, tokenized)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _of_one(path: Path, options: ReadOptions) -> Source:
    if not path.is_file():
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(
            f"There is no file '{path}'.{did_you_mean(path.name, there)} Give a .txt or .jsonl file, plain or .zst."
        )
    reader, tokenized = _reader(path, options)
    return Source(reader, path.name, tokenized)


def _reader(path: Path, options: ReadOptions) -> tuple[Reader, Tokenized | None]:
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"'{path}' is a file of an unknown kind; {_READ} are read.")
    if kind in (".bin", ".npy"):
        return token_file_reader(path, options)
    if kind == ".parquet":
        reader: Reader = parquet_reader(path, options)
    elif kind == ".json":
        reader = _json_reader(path, options)
    elif kind == ".jsonl":
        reader = Lines(path, column_of(first_record(path), options.text_column), options.chat)
    else:
        reader = Lines(path)
    return reader, tokenized_like(look_at(reader)) if kind != ".txt" else None


def look_at(reader: Reader) -> list[Any]:
    """Returns the first documents of a reader, as far as they can be read: an error in them is raised when they are reached."""
    found: list[Any] = []
    with contextlib.suppress(DataError):
        found.extend(document for document, _ in islice(reader.read(), ROWS_LOOKED_AT))
    return found


def _json_reader(path: Path, options: ReadOptions) -> Indexed:
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"'{path}' is not JSON ({error}). A file with one record a line is called .jsonl.") from error
    if not isinstance(records, list):
        raise DataError(f"'{path}' holds a {type(records).__name__}; a list of strings or of objects is needed.")

    column = column_of(next(iter(records), None), options.text_column)

    def fetch(numbers: Any) -> list[Any]:
        return [
            as_document(record, options.chat)
            if isinstance(record, (str, list))
            else record_document(record, f"Record {n} of '{path}'", column, options.chat)
            for n, record in ((n, records[n]) for n in numbers)
        ]

    return Indexed(fetch, range(len(records)))
