"""Documents in files: one file, all files of a folder, or all that match a pattern.

The files are read here, and not by `datasets`, which needs 4 to 20 times as long for the same rows,
reads a file from its start to resume in it, forgets its shuffle buffer, takes a byte order mark for
text, and turns one bad line into a failure of the whole file (measured with datasets 5.2).
"""

import contextlib
import dataclasses
import glob
import io
import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from dictionary_learning._disk import settled
from dictionary_learning.data._decompressed import COMPRESSIONS, decompressed
from dictionary_learning.data._document import (
    RUNS_COLUMN,
    BadDocument,
    Chat,
    ReadOptions,
    SourceParts,
    Tokenized,
    as_document,
    choose_column,
    infer_tokenized,
    read_record,
    require_column,
)
from dictionary_learning.data._memory_map import token_file_reader
from dictionary_learning.data._reading import ConcatReader, MapReader, Mark, Reader
from dictionary_learning.data._retrying import is_transient
from dictionary_learning.errors import DataError, did_you_mean

_SUPPORTED = ".txt and .jsonl (plain, .zst or .gz), .json, .parquet, .bin and .npy are supported"
_CHUNK = 1 << 17  # bytes read in one call
_ROWS_AT_ONCE = 256


def kind_of(path: Path) -> str | None:
    """Returns the suffix that names the format of a file, without compression; None if unknown."""
    if path.suffix in COMPRESSIONS:
        inner = path.with_suffix("").suffix
        return inner if inner in (".txt", ".jsonl") else None
    return path.suffix if path.suffix in _READERS else None


def files_reader(name: str, options: ReadOptions) -> SourceParts:
    """Returns what a source of a file, a folder or a pattern is made of."""
    path = Path(name).expanduser()
    if path.is_dir():
        # hidden files, and files in hidden folders, are what programs leave behind
        found = sorted(p for p in path.rglob("*") if not re.search(r"(^|/)\.", p.relative_to(path).as_posix()))
    elif glob.has_magic(name) and not path.exists():
        found = sorted(map(Path, glob.glob(str(path), recursive=True)))
    else:
        if not path.is_file():
            siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
            hint = did_you_mean(path.name, siblings)
            raise DataError(f"There is no file '{path}'.{hint} Pass a .txt or .jsonl file, plain or compressed.")
        kind = kind_of(path)
        if kind is None:
            raise DataError(f"'{path}' is a file of an unknown kind; {_SUPPORTED}.")
        reader, tokenized = _READERS[kind](settled(path), options)
        return reader, path.name, tokenized
    parts = [_READERS[kind](settled(p), options) for p in found if p.is_file() and (kind := kind_of(p))]
    if not parts:
        raise DataError(f"'{name}' names no file of a known kind; {_SUPPORTED}.")
    known = [tokenized for _, tokenized in parts]
    if any(t is None for t in known) and not all(t is None for t in known):
        raise DataError(
            f"'{name}' names files of text and files of token ids. Pass one kind, or combine them with `mix`."
        )
    tokenized = known[0] if known.count(known[0]) == len(known) else Tokenized()
    return ConcatReader([reader for reader, _ in parts]), path.name or name, tokenized


@dataclasses.dataclass(frozen=True)
class LineReader(Reader):
    """The lines of a file, each a document; blank lines are not. The mark is a line and a byte."""

    path: Path
    column: str | None = None  # the key in a JSON record; None for lines of text
    chat: Chat | None = None

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        number, place = mark or (0, 0)
        with _open(self.path) as file, _naming_damage(self.path):
            self._skip(file, place)
            for line in file:
                number, place = number + 1, place + len(line)  # bytes after decompression
                document = self._document(line, number)
                if document is not None:
                    yield _with_place(document, "Line", number, self.path), [number, place]

    def _skip(self, file: Any, n: int) -> None:
        if self.path.suffix not in COMPRESSIONS:
            file.seek(n)
            return
        while n:  # a compressed file is decompressed up to the byte, and not parsed
            n_read = len(file.read(min(n, _CHUNK)))
            if not n_read:
                raise DataError(
                    f"'{self.path}' is shorter than when it was read before. Pass the file that the run was started "
                    "with."
                )
            n -= n_read

    def _document(self, line: bytes, number: int) -> Any:
        """Returns the document of a line; None for a blank one."""
        try:
            # a byte order mark stands at the start of the file only
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            return BadDocument(f"is not UTF-8 ({error.reason} at byte {error.start}). Convert the file")
        if not text.strip():
            return None
        if self.column is None:
            return as_document(text)
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:  # long numbers; a thousand brackets
            return BadDocument(f"is not JSON ({error}). Correct or remove the line")
        return read_record(record, self.column, self.chat)


def _with_place(document: Any, kind: str, number: int, path: Path) -> Any:
    """Adds the place to a bad document."""
    if not isinstance(document, BadDocument):
        return document
    return dataclasses.replace(document, place=f"{kind} {number} of '{path}'")


def _open(path: Path) -> Any:
    """Opens a file for reading bytes, decompressed."""
    if path.suffix not in COMPRESSIONS:
        return open(path, "rb")
    return io.BufferedReader(decompressed(path, path.suffix), _CHUNK)


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Raises a `DataError` for a file that is damaged or ends too early."""
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow raises both
        if is_transient(error):
            raise
        raise DataError(
            f"'{path}' is damaged or was cut off ({str(error).splitlines()[0]}). Download or write it again."
        ) from error


@dataclasses.dataclass(frozen=True)
class ParquetReader(Reader):
    """The rows of a Parquet file. The mark is a row; reading starts at its row group."""

    path: Path
    column: str
    chat: Chat | None = None

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        import pyarrow.parquet

        start = mark or 0
        with _naming_damage(self.path), pyarrow.parquet.ParquetFile(self.path) as file:
            n_groups = file.num_row_groups
            ends = [0, *accumulate(file.metadata.row_group(i).num_rows for i in range(n_groups))]
            group = bisect_right(ends, start) - 1  # the groups before it were read
            n = ends[group]
            columns = [name for name in (self.column, RUNS_COLUMN) if name in file.schema_arrow.names]
            # in batches: a group may be larger than the memory
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=range(group, n_groups), columns=columns):
                unread = batch.slice(min(max(start - n, 0), len(batch)))
                n += len(batch)
                for row, record in enumerate(unread.to_pylist(), n - len(unread)):
                    document = read_record(record, self.column, self.chat)
                    yield _with_place(document, "Row", row, self.path), row + 1


def _json_lines(path: Path, options: ReadOptions) -> tuple[Reader, Tokenized | None]:
    first: Any = None
    with contextlib.suppress(DataError, ValueError, RecursionError), _open(path) as file, _naming_damage(path):
        first = json.loads(next((line for line in file if line.strip()), b"null"))
    reader = LineReader(path, _column_of(first, options.text_column), options.chat)
    return reader, infer_tokenized(reader)


def _parquet(path: Path, options: ReadOptions) -> tuple[Reader, Tokenized | None]:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"'{path}' is no Parquet file ({str(error).splitlines()[0]}). Pass another file.") from error
    reader = ParquetReader(path, require_column(names, options.text_column, f"'{path.name}'"), options.chat)
    return reader, infer_tokenized(reader)


def _json(path: Path, options: ReadOptions) -> tuple[Reader, Tokenized | None]:
    try:
        records = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"'{path}' is not JSON ({error}). A file with one record per line is called .jsonl.") from error
    if not isinstance(records, list):
        raise DataError(f"'{path}' holds a {type(records).__name__}; a list of strings or of objects is needed.")
    column = _column_of(next(iter(records), None), options.text_column)

    def document(record: Any) -> Any:
        if isinstance(record, (str, list)):
            return as_document(record, options.chat)
        return read_record(record, column, options.chat)

    def fetch(numbers: list[int]) -> list[Any]:
        return [_with_place(document(records[n]), "Record", n, path) for n in numbers]

    reader = MapReader(fetch, range(len(records)), path=path)
    return reader, infer_tokenized(reader)


_READERS: dict[str, Callable[[Path, ReadOptions], tuple[Reader, Tokenized | None]]] = {
    ".txt": lambda path, _: (LineReader(path), None),
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".bin": token_file_reader,
    ".npy": token_file_reader,
}


def _column_of(first_record: Any, wanted: str) -> str:
    """Returns the column of the first record: all others must have the same one."""
    return (choose_column(first_record, wanted) if isinstance(first_record, dict) else None) or wanted
