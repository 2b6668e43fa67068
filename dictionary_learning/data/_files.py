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
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dictionary_learning.data._document import (
    N_INSPECTED,
    RUNS_COLUMN,
    BadDocument,
    Chat,
    ReadOptions,
    Tokenized,
    as_document,
    choose_column,
    infer_tokenized,
    read_record,
    require_column,
)
from dictionary_learning.data._memory_map import token_file_reader
from dictionary_learning.data._reading import ConcatReader, MapReader, Mark, Reader
from dictionary_learning.errors import DataError, did_you_mean

COMPRESSIONS = {".zst": "zstd", ".gz": "gzip"}
KINDS = (".txt", ".jsonl", ".json", ".parquet", ".bin", ".npy")
_SUPPORTED = ".txt and .jsonl (plain, .zst or .gz), .json, .parquet, .bin and .npy are supported"
_CHUNK = 1 << 17  # bytes read in one call
_ROWS_AT_ONCE = 256


def kind_of(path: Path) -> str | None:
    """Returns the suffix that names the format of a file, without compression; None if unknown."""
    if path.suffix in COMPRESSIONS:
        inner = path.with_suffix("").suffix
        return inner if inner in (".txt", ".jsonl") else None
    return path.suffix if path.suffix in KINDS else None


def files_reader(name: str, options: ReadOptions) -> tuple[Reader, str, Tokenized | None]:
    """Returns a reader of a file, a folder or a pattern, its name, and what is known of its ids.

    Raises:
        DataError: There is no such file, or none of a supported format.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if not _is_hidden(p, path))
    elif glob.has_magic(name) and not path.exists():
        found = sorted(map(Path, glob.glob(str(path), recursive=True)))
    else:
        _check_exists(path)
        reader, tokenized = _file_reader(path, options)
        return reader, path.name, tokenized
    parts = [_file_reader(p, options) for p in found if p.is_file() and kind_of(p)]
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
    """The lines of a file, each a document; blank lines are not. The mark is a line and a byte.

    Args:
        path: The file.
        column: The key that holds the document in a JSON record; None for lines of text.
        chat: How conversations are rendered.
    """

    path: Path
    column: str | None = None
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
                    f"'{self.path}' is shorter than when it was read before. Pass the file that the run was started with."
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
        except (ValueError, RecursionError) as error:  # very long numbers; brackets nested a thousand times
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
    import pyarrow

    # unlike gzip and zstandard, it raises an error where a file was cut off, and reads several frames
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=COMPRESSIONS[path.suffix]), _CHUNK)


@contextlib.contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    """Raises a `DataError` for a file that is damaged or ends too early."""
    try:
        yield
    except (OSError, ValueError) as error:  # pyarrow raises both
        raise DataError(
            f"'{path}' is damaged or was cut off ({str(error).splitlines()[0]}). Download or write it again."
        ) from error


@dataclasses.dataclass(frozen=True)
class ParquetReader(Reader):
    """The rows of a Parquet file. The mark is a row; reading starts at the row group that holds it.

    Args:
        path: The file.
        column: The column that holds the documents.
        chat: How conversations are rendered.
    """

    path: Path
    column: str
    chat: Chat | None = None

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        import pyarrow.parquet

        start, n = mark or 0, 0
        with _naming_damage(self.path), pyarrow.parquet.ParquetFile(self.path) as file:
            columns = [name for name in (self.column, RUNS_COLUMN) if name in file.schema_arrow.names]
            for group in range(file.num_row_groups):
                n_rows = file.metadata.row_group(group).num_rows
                if n + n_rows <= start:  # the whole group was read before
                    n += n_rows
                    continue
                # in batches: a group may be larger than the memory
                for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=columns):
                    if n + len(batch) <= start:
                        n += len(batch)
                        continue
                    for record in batch.to_pylist():
                        n += 1
                        if n > start:
                            document = read_record(record, self.column, self.chat)
                            yield _with_place(document, "Row", n - 1, self.path), n


def _file_reader(path: Path, options: ReadOptions) -> tuple[Reader, Tokenized | None]:
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"'{path}' is a file of an unknown kind; {_SUPPORTED}.")
    if kind in (".bin", ".npy"):
        return token_file_reader(path, options)
    if kind == ".txt":
        return LineReader(path), None
    if kind == ".parquet":
        reader = _parquet_reader(path, options)
    elif kind == ".json":
        reader = _json_reader(path, options)
    else:
        reader = LineReader(path, _column_of(_first_record(path), options.text_column), options.chat)
    documents: list[Any] = []
    with contextlib.suppress(DataError):  # an error is raised when its document is reached
        documents.extend(document for document, _ in islice(reader.read(), N_INSPECTED))
    return reader, infer_tokenized(documents)


def _parquet_reader(path: Path, options: ReadOptions) -> Reader:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"'{path}' is no Parquet file ({str(error).splitlines()[0]}). Pass another file.") from error
    return ParquetReader(path, require_column(names, options.text_column, f"'{path.name}'"), options.chat)


def _json_reader(path: Path, options: ReadOptions) -> Reader:
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

    def fetch(numbers: Sequence[int]) -> list[Any]:
        return [_with_place(document(records[n]), "Record", n, path) for n in numbers]

    return MapReader(fetch, range(len(records)))


def _column_of(first_record: Any, wanted: str) -> str:
    """Returns the column of the first record: all others must have the same one."""
    return (choose_column(first_record, wanted) if isinstance(first_record, dict) else None) or wanted


def _first_record(path: Path) -> Any:
    with contextlib.suppress(DataError, ValueError, RecursionError), _open(path) as file, _naming_damage(path):
        return json.loads(next((line for line in file if line.strip()), b"null"))
    return None


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _check_exists(path: Path) -> None:
    if not path.is_file():
        siblings = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        raise DataError(f"There is no file '{path}'.{hint} Pass a .txt or .jsonl file, plain or compressed.")
