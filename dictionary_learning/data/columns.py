"""Which column of a record holds the document, and how it is read."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dictionary_learning.data.document import Chat, TokenRow, as_document
from dictionary_learning.data.source import Tokenized
from dictionary_learning.errors import DataError, did_you_mean

DEFAULT_COLUMN = "text"
TOKEN_COLUMNS = ("input_ids", "tokens")
CHAT_COLUMNS = ("messages", "conversation", "conversations")
RUNS_COLUMN = "document_runs"
"""Beside token ids, in data that `pretokenize` wrote: `TokenRow.runs`."""


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How records and token files are read; see `as_source`."""

    text_column: str = DEFAULT_COLUMN
    chat: Chat | None = None
    dtype: str = "uint16"
    row_len: int = 2048
    separator_id: int | None = None


def choose_column(columns: Iterable[str], wanted: str) -> str | None:
    """Returns the column that holds the documents: the wanted one, or, where none was asked for, token ids or a conversation.

    None if there is none.
    """
    columns = list(columns)
    others = (*TOKEN_COLUMNS, *CHAT_COLUMNS) if wanted == DEFAULT_COLUMN else ()
    return next((name for name in (wanted, *others) if name in columns), None)


def require_column(columns: Sequence[str], wanted: str, where: str) -> str:
    """Returns the column that holds the documents.

    Raises:
        DataError: there is none.
    """
    column = choose_column(columns, wanted)
    if column is None:
        raise DataError(
            f"{where} has no column '{wanted}'; it has: {', '.join(columns)}.{did_you_mean(wanted, columns)} "
            "Set text_column to the one that holds the text."
        )
    return column


def read_record(record: Mapping[str, Any], column: str, chat: Chat | None) -> Any:
    """Returns the document that a record holds."""
    document = as_document(record[column], chat)
    if isinstance(document, TokenRow) and record.get(RUNS_COLUMN) is not None:
        return TokenRow(document.ids, runs=tuple(int(i) for i in record[RUNS_COLUMN]))
    return document


def tokenized_like(documents: Sequence[Any], known: Tokenized | None = None) -> Tokenized | None:
    """Returns what the first documents of a source show of its token ids; None where they are not token ids."""
    if not documents or not isinstance(documents[0], TokenRow):
        return None
    if known is not None:
        return known
    rows = [document.ids for document in documents if isinstance(document, TokenRow)]
    lengths, begins = {len(ids) for ids in rows}, {ids[0] if ids else None for ids in rows}
    return Tokenized(
        ctx_len=lengths.pop() if len(lengths) == 1 and len(rows) > 1 else None,
        first_id=begins.pop() if len(begins) == 1 and len(rows) == ROWS_LOOKED_AT else None,
    )


ROWS_LOOKED_AT = 8
"""How many rows are looked at: if they are of one length the data counts as contexts."""
