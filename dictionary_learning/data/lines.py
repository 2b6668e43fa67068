"""Documents in the lines of a file: plain text, or JSON Lines, either compressed or not."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dictionary_learning.data.chat import Chat
from dictionary_learning.data.columns import choose_column, read_record
from dictionary_learning.data.compression import lines_of, open_bytes, skip
from dictionary_learning.data.reading import Mark, Reader
from dictionary_learning.errors import DataError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Lines(Reader):
    """The lines of a file, each a document; blank ones are none. It resumes at a byte, which costs nothing where nothing is compressed.

    Args:
        path: the file.
        column: the key that holds the document, where each line is a JSON record; None for lines of text.
        chat: how conversations become text.
    """

    path: Path
    column: str | None = None
    chat: Chat | None = None

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents, with the number and the byte of the next line."""
        number, place = mark or (0, 0)
        with open_bytes(self.path) as file:
            skip(file, place, self.path)
            for line in lines_of(file, self.path):
                number, place = number + 1, place + len(line)
                text = self._text(line, number)
                if text.strip():
                    document = text if self.column is None else self._from_json(text, number, self.column)
                    yield document, [number, place]

    def _text(self, line: bytes, number: int) -> str:
        try:
            return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"Line {number} of '{self.path}' is not UTF-8 ({error.reason} at byte {error.start}). Convert the file."
            ) from error

    def _from_json(self, text: str, number: int, column: str) -> Any:
        where = f"Line {number} of '{self.path}'"
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON ({error}).") from error
        return record_document(record, where, column, self.chat)


def record_document(record: Any, where: str, column: str, chat: Chat | None) -> Any:
    """Returns the document of a JSON record.

    Raises:
        DataError: it is no object, or has no such key.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where} is a {type(record).__name__}; an object with the key '{column}' is needed.")
    if column not in record:
        raise DataError(
            f"{where} has no '{column}'; it has: {', '.join(record) or 'nothing'}."
            f"{did_you_mean(column, record)} Set text_column to the one that holds the text."
        )
    return read_record(record, column, chat)


def column_of(record: Any, wanted: str) -> str:
    """Returns the column of a file's first record: all others must have the same, and none is taken in its place."""
    return (choose_column(record, wanted) if isinstance(record, dict) else None) or wanted


def first_record(path: Path) -> Any:
    """Returns the first record of a JSON Lines file, or None where it cannot be read; the error is raised when it is reached."""
    with contextlib.suppress(DataError, ValueError), open_bytes(path) as file:
        return json.loads(next((line for line in lines_of(file, path) if line.strip()), b"null"))
    return None
