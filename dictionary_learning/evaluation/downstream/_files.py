"""Rows of tables in files: CSV, TSV and JSONL, also compressed."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from dictionary_learning.data._decompressed import COMPRESSIONS, decompressed
from dictionary_learning.errors import DataError

_TABLES = (".csv", ".tsv", ".jsonl")
SUFFIXES = tuple(f"{table}{packed}" for table in _TABLES for packed in ("", *COMPRESSIONS))


def rows_of_file(path: Path) -> list[Any]:
    """Returns the rows of a table: mappings by column, or what the lines of a JSONL file hold.

    Raises:
        DataError: it does not exist, is damaged, or has another form.
    """
    try:
        return rows_of_bytes(path.read_bytes(), path.name)
    except OSError as error:
        raise DataError(f"'{path}' cannot be read ({error}). Check the path.") from error


def rows_of_bytes(data: bytes, name: str) -> list[Any]:
    """Returns the rows of a table in memory; its name says its form."""
    low = name.lower()
    if not low.endswith(SUFFIXES):
        raise DataError(f"'{name}' has another form than {', '.join(_TABLES)} (also .gz or .zst). Convert it to one.")
    try:
        suffix = Path(low).suffix
        if suffix in COMPRESSIONS:
            with decompressed(data, suffix) as file:
                data, low = file.read(), low.removesuffix(suffix)
        words = data.decode("utf-8-sig")
        if low.endswith(".jsonl"):
            return [json.loads(line) for line in words.split("\n") if line.strip()]
        return _table(words, "\t" if low.endswith(".tsv") else ",")
    except (ValueError, OSError, csv.Error, RuntimeError) as error:  # pyarrow raises the first two
        raise DataError(f"'{name}' cannot be read ({type(error).__name__}: {error}). Check the file.") from error


def _table(words: str, delimiter: str) -> list[Any]:
    # the module csv refuses texts over 131,072 characters, by a limit of the whole process
    if '"' in words and len(words) > csv.field_size_limit():
        return _by_arrow(words, delimiter)
    return list(csv.DictReader(io.StringIO(words, newline=""), delimiter=delimiter, strict=True))


def _by_arrow(words: str, delimiter: str) -> list[Any]:
    import pyarrow as pa
    import pyarrow.csv as arrow

    header = next(csv.reader(io.StringIO(words, newline=""), delimiter=delimiter))
    data = words.encode()
    table = arrow.read_csv(
        io.BytesIO(data),
        read_options=arrow.ReadOptions(block_size=len(data) + 1),
        parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=arrow.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
        ),
    )
    return table.to_pylist()
