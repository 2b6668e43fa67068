"""Documents (text, token ids or a conversation), and the column of a record that holds one."""

import contextlib
import dataclasses
import math
import random
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
from torch import Tensor

from dictionary_learning._border import said
from dictionary_learning.config import BaseConfig, setting
from dictionary_learning.data._reading import Reader
from dictionary_learning.errors import DataError, did_you_mean

DEFAULT_COLUMN = "text"
TOKEN_COLUMNS = ("input_ids", "tokens")
CHAT_COLUMNS = ("messages", "conversation", "conversations")
RUNS_COLUMN = "document_runs"
"""Stored beside the token ids in data that `pretokenize` wrote: `TokenRow.runs`."""
_N_INSPECTED = 8  # documents that are inspected for a common length and a common first token
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(BaseConfig):
    """How a conversation is rendered; by default with the tokenizer's chat template."""

    template: str | None = None
    """A Jinja template that replaces the tokenizer's own."""
    system_prompt: str | None = None
    """Text that is removed from the rendered conversation."""
    removal_frequency: float = setting(1.0, at_least=0, at_most=1)
    """The fraction of conversations from which `system_prompt` is removed."""
    seed: int = 0
    """The seed that selects these conversations."""


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages that a chat template renders as text."""

    messages: list[dict[str, Any]]
    """The turns, each with "role" and "content"."""
    chat: Chat = Chat()

    def render(self, tokenizer: Any) -> str:
        """Returns the text that the model reads.

        Raises:
            DataError: The tokenizer has no chat template, or the template rejects the messages.
        """
        from jinja2 import TemplateError

        if (self.chat.template or getattr(tokenizer, "chat_template", None)) is None:
            raise DataError(
                f"The data holds conversations, and the tokenizer {getattr(tokenizer, 'name_or_path', '') or ''} has "
                "no chat template. Pass chat=Chat(template=...), or use a model that was trained on conversations."
            )
        try:
            text = tokenizer.apply_chat_template(self.messages, chat_template=self.chat.template, tokenize=False)
        except (TemplateError, ValueError, KeyError, TypeError) as error:
            roles = ", ".join(str(m.get("role")) for m in self.messages)
            raise DataError(
                f"The chat template cannot write a conversation with the roles {roles}: {said(error)} Remove such "
                "conversations, or pass a template that supports these roles."
            ) from error
        # seeded by the text, so that the choice does not depend on the order of the documents
        chance = random.Random(f"{self.chat.seed}:{text}").random()
        if self.chat.system_prompt and chance < self.chat.removal_frequency:
            return text.replace(self.chat.system_prompt, "")
        return text


@dataclasses.dataclass(frozen=True)
class TokenRow:
    """Token ids that were made before."""

    ids: list[int]
    runs: tuple[int, ...] | None = None
    """The documents of the tokens, in a context that `pretokenize` wrote. Three numbers for each
    stretch: its length, its document, and the position of its first token in the document, or -1
    if the stretch was inserted (BOS, separator)."""
    start: int | None = None
    """The position of the first token in one long text; None for a document of its own."""


@dataclasses.dataclass(frozen=True)
class BadDocument:
    """A value that is not a document. The source raises an error for it, or skips it."""

    problem: str
    """What is wrong and what to do, as the rest of a sentence that begins with the place."""
    place: str | None = None
    """Where the value is stored; None for its number in the source."""
    skip: bool = False
    """Skips the value, whatever the policy of the source."""


Document = str | TokenRow | Conversation
"""One item of a source."""


@dataclasses.dataclass(frozen=True)
class Tokenized:
    """What is known about the token ids of a source."""

    tokenizer: str | None = None
    """The name of the tokenizer that made them."""
    fingerprint: str | None = None
    """The hash of that tokenizer's vocabulary (see `_tokenizing.fingerprint`)."""
    ctx_len: int | None = None
    """The common length of all rows."""
    first_id: int | None = None
    """The common first token id of all rows."""
    packing: dict[str, Any] | None = None
    """How `pretokenize` made contexts of the documents (see `TokenStream.packing`)."""


SourceParts = tuple[Reader, str, Tokenized | None]
"""What a `Source` is made of: a reader, its name, and what is known about its token ids."""


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How records, data sets and token files are read; see `as_source`."""

    text_column: str = DEFAULT_COLUMN
    split: str = "train"
    streaming: bool = True
    data_args: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    chat: Chat | None = None
    dtype: str = "uint16"
    row_len: int = 2048
    separator_id: int | None = None


def as_document(value: Any, chat: Chat | None = None) -> Document | BadDocument:
    """Converts text, token ids (list, tensor, array) or turns of a conversation to a document."""
    if isinstance(value, str):
        return value if _is_unicode(value) else BadDocument(_SURROGATE)
    if isinstance(value, (np.ndarray, Tensor)):
        value = value.tolist()
    is_sequence = isinstance(value, Sequence) and not isinstance(value, bytes)
    # True and False are integers too
    if is_sequence and all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in value):
        return TokenRow([int(i) for i in value])
    if isinstance(value, dict) and value and all(isinstance(turns, list) for turns in value.values()):
        # `datasets` returns a list of records as a record of lists
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    if isinstance(value, (list, tuple)) and value and all(isinstance(turn, dict) for turn in value):
        return _as_conversation(value, chat or Chat())
    # pandas stores a missing text as NaN
    is_null = value is None or (isinstance(value, float) and math.isnan(value))
    found = "null" if is_null else f"a {type(value).__name__}"
    if is_sequence:
        odd = next(v for v in cast(Sequence[Any], value) if isinstance(v, bool) or not isinstance(v, (int, np.integer)))
        return BadDocument(f"is {found} of {type(odd).__name__}; text or integers (token ids) are needed. Convert it")
    return BadDocument(f"is {found}; text is needed. Pass strings, or name the column that holds text")


_SURROGATE = "contains half of a UTF-16 surrogate pair, which is not Unicode text. Remove or replace it"


def _is_unicode(text: str) -> bool:
    if text.isascii():  # a flag of the string: costs nothing
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_conversation(turns: Sequence[dict[str, Any]], chat: Chat) -> Conversation | BadDocument:
    """Converts turns with "role" and "content", or ShareGPT's "from" and "value"."""
    if all("role" in turn and ("content" in turn or "tool_calls" in turn) for turn in turns):
        messages = [dict(turn) for turn in turns]
    elif all("from" in turn and "value" in turn for turn in turns):
        messages = [{"role": _SHAREGPT_ROLES.get(t["from"], t["from"]), "content": t["value"]} for t in turns]
    else:
        keys = ", ".join(turns[0])
        needed = "'role' and 'content' are needed. Rename them, or pass text"
        return BadDocument(f"is a conversation whose turns have the keys {keys}; {needed}")
    if not all(_is_unicode(text) for turn in messages for text in turn.values() if isinstance(text, str)):
        return BadDocument(_SURROGATE)
    return Conversation(messages, chat)


def choose_column(columns: Collection[str], wanted: str) -> str | None:
    """Returns the wanted column; for the default, else one of token ids or conversations."""
    others = (*TOKEN_COLUMNS, *CHAT_COLUMNS) if wanted == DEFAULT_COLUMN else ()
    return next((name for name in (wanted, *others) if name in columns), None)


def require_column(columns: Sequence[str], wanted: str, place: str) -> str:
    """Returns the column that `choose_column` finds.

    Raises:
        DataError: There is no such column.
    """
    column = choose_column(columns, wanted)
    if column is None:
        raise DataError(f"{place} {_no_column(columns, wanted, 'no column ')}.")
    return column


def _no_column(columns: Collection[str], wanted: str, kind: str) -> str:
    found = f"has {kind}'{wanted}'; it has: {', '.join(columns) or 'nothing'}.{did_you_mean(wanted, columns)}"
    return f"{found} Set text_column to the one that holds the text"


def read_record(record: Any, column: str, chat: Chat | None) -> Document | BadDocument:
    """Returns the document in one column of a record."""
    if not isinstance(record, Mapping):
        return BadDocument(f"is a {type(record).__name__}; an object with the key '{column}' is needed")
    if column not in record:
        return BadDocument(_no_column(record, column, "no "))
    document = as_document(record[column], chat)
    if isinstance(document, TokenRow) and record.get(RUNS_COLUMN) is not None:
        return TokenRow(document.ids, runs=tuple(int(i) for i in record[RUNS_COLUMN]))
    return document


def read_item(item: Any, wanted: str, chat: Chat | None) -> Document | BadDocument:
    """Returns the document that an item of a list or an iterator is, or that it has in a column."""
    if not isinstance(item, Mapping):
        return as_document(item, chat)
    column = choose_column(item, wanted)
    # a conversation may come as a record of lists
    is_talk = column is None and any(key in item for key in ("role", "from"))
    return as_document(item, chat) if is_talk else read_record(item, column or wanted, chat)


def infer_tokenized(reader: Reader) -> Tokenized | None:
    """Returns what the first documents show about the token ids; None for text."""
    documents: list[Any] = []
    with contextlib.suppress(DataError):  # an error is raised when its document is reached
        documents.extend(document for document, _ in islice(reader.read(), _N_INSPECTED))
    if not documents or not isinstance(documents[0], TokenRow):
        return None
    rows = [document.ids for document in documents if isinstance(document, TokenRow)]
    lengths, first_ids = {len(ids) for ids in rows}, {ids[0] if ids else None for ids in rows}
    return Tokenized(
        ctx_len=lengths.pop() if len(lengths) == 1 and len(rows) > 1 else None,
        first_id=first_ids.pop() if len(first_ids) == 1 and len(rows) == _N_INSPECTED else None,
    )


def check_ids(ids: Sequence[int], vocab_size: int | None, place: str) -> None:
    """Raises a `DataError` that names the position of an id that is not in the vocabulary."""
    if ids and (min(ids) < 0 or (vocab_size is not None and max(ids) >= vocab_size)):
        n = next(n for n, i in enumerate(ids) if i < 0 or (vocab_size is not None and i >= vocab_size))
        known = "at least 0" if vocab_size is None else f"from 0 to {vocab_size - 1}"
        hint = " Remove label masks such as -100." if ids[n] < 0 else ""
        raise DataError(
            f"{place} has the token id {ids[n]} at place {n}, and the vocabulary has ids {known}.{hint} Or another "
            "tokenizer made the data, or they were read with a wrong dtype: use data of this model's tokenizer, or "
            "the text itself."
        )
