"""What a source gives: text, token ids, or a conversation."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dictionary_learning.data.chat import Chat, Conversation, messages_of


@dataclasses.dataclass(frozen=True)
class TokenRow:
    """Token ids that were made before."""

    ids: list[int]
    """The ids."""
    runs: tuple[int, ...] | None = None
    """Which documents they are of, where the row is a context made by `pretokenize`: for each stretch, how many tokens, the document,
    and the place in it of the first, or -1 where the stretch was put in and is of no document's text."""
    start: int | None = None
    """The place of the first token, where the row is a piece of one long text; None where it is a document."""


Document = str | TokenRow | Conversation
"""What a source gives one of after another."""


def as_document(value: Any, chat: Chat | None = None) -> Any:
    """Returns what a row holds as a document; what is none is returned as it is, for the source to refuse."""
    if isinstance(value, str):
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if is_token_ids(value):
        return TokenRow([int(i) for i in value])
    if isinstance(value, dict) and value and all(isinstance(turns, list) for turns in value.values()):
        # `datasets` gives a sequence of records as a record of sequences
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        return Conversation(messages_of(value), chat or Chat())
    return value


def is_token_ids(value: Any) -> bool:
    """Returns whether a value is a sequence of whole numbers."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and bool(np.issubdtype(value.dtype, np.integer))
    whole = isinstance(value, Sequence) and not isinstance(value, str)
    return whole and all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in value)
