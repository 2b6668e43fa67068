"""Contexts that are not packed: one for each document, or rows that are contexts already."""

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

from dictionary_learning.data._document import Document, TokenRow
from dictionary_learning.data._source import EpochReader
from dictionary_learning.data._token_batch import Row, Run
from dictionary_learning.data._tokenizing import runs_of, tokenize
from dictionary_learning.errors import DataError

logger = logging.getLogger(__name__)

Framing = Literal["tokenizer", "bos", "nothing"]


class UnpackedContexts(ABC):
    """Contexts of at most `ctx_len` tokens, of which none holds tokens of two documents."""

    def __init__(self, documents: EpochReader, ctx_len: int):
        self.documents, self.ctx_len = documents, ctx_len
        self.n_cut = 0
        """Tokens of long documents that were dropped."""
        self.clear()

    def clear(self) -> None:
        """Drops the contexts that were not returned yet."""
        self._waiting: deque[Row] = deque()  # the rest of a long document's contexts

    def take(self, n: int) -> list[Row]:
        """Returns the next n contexts; fewer at the end of the data."""
        while len(self._waiting) < n:
            numbered = self.documents.take(n - len(self._waiting))
            if not numbered:
                break
            self._waiting.extend(row for row in self.contexts_of(numbered) if row.ids)
        return [self._waiting.popleft() for _ in range(min(n, len(self._waiting)))]

    @abstractmethod
    def contexts_of(self, numbered: Sequence[tuple[int, Document]]) -> Iterator[Row]:
        """Yields the contexts of numbered documents."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the contexts that were not returned yet, and the number of tokens dropped."""
        waiting = [[row.ids, [list(run) for run in row.runs]] for row in self._waiting]
        return {"waiting": waiting, "n_cut": self.n_cut}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._waiting = deque(Row(list(ids), [Run(*run) for run in runs]) for ids, runs in state.get("waiting", []))
        self.n_cut = state.get("n_cut", 0)


class PaddedContexts(UnpackedContexts):
    """One context for each document, or several for a long one; see `TokenStream`.

    `framing` is what is inserted around a document: the special tokens of the `tokenizer`, these
    and a `bos`, or `nothing`.
    """

    def __init__(self, documents: EpochReader, tokenizer: Any, framing: Framing, ctx_len: int, long_documents: str):
        super().__init__(documents, ctx_len)
        self.tokenizer, self.framing, self.long_documents = tokenizer, framing, long_documents
        self.bos = None if tokenizer is None else tokenizer.bos_token_id

    def contexts_of(self, numbered: Sequence[tuple[int, Document]]) -> Iterator[Row]:
        documents = [document for _, document in numbered]
        framed = tokenize(documents, self.tokenizer, special=self.framing != "nothing")
        for (number, _), (ids, inserted) in zip(numbered, framed, strict=True):
            yield from self._contexts(*self._with_one_bos(ids, inserted), number)

    def _with_one_bos(self, ids: list[int], inserted: list[int]) -> tuple[list[int], list[int]]:
        if self.bos is None or not ids:
            return ids, inserted
        if self.framing == "bos" and ids[0] != self.bos:
            return [self.bos, *ids], [1, *inserted]
        # a chat template writes BOS, and the tokenizer inserts another one before it
        while len(ids) > 1 and inserted[0] and ids[0] == ids[1] == self.bos:
            ids, inserted = ids[1:], [1, *inserted[2:]]
        return ids, inserted

    def _contexts(self, ids: list[int], inserted: list[int], number: int) -> Iterator[Row]:
        n_more = len(ids) - self.ctx_len
        if n_more > 0 and self.long_documents == "cut":
            if not self.n_cut:
                logger.warning(
                    "Documents of %s are longer than ctx_len=%d tokens and are cut; long_documents='split' or "
                    "pack=True reads all of them.",
                    self.documents.source.name, self.ctx_len,
                )  # fmt: skip
            self.n_cut += n_more
            ids = ids[: self.ctx_len]
        at, lead = 0, []  # `at` counts tokens of `ids`, inserted ones included
        while at < len(ids):
            stop = at + self.ctx_len - len(lead)
            part, mask = lead + ids[at:stop], [1] * len(lead) + inserted[at:stop]
            yield _row_of(part, mask, number, at - sum(inserted[:at]))
            at = stop
            lead = ids[:1] if ids[:1] == [self.bos] else []  # each further context begins with BOS too


class ReadyContexts(UnpackedContexts):
    """Rows of ids that are contexts already, and should begin with `bos` (None for any token)."""

    def __init__(self, documents: EpochReader, ctx_len: int, bos: int | None):
        super().__init__(documents, ctx_len)
        self.bos = bos
        self._has_warned = False

    def contexts_of(self, numbered: Sequence[tuple[int, Document]]) -> Iterator[Row]:
        return (self._row(document, number) for number, document in numbered)

    def _row(self, document: Document, number: int) -> Row:
        name = self.documents.source.name
        if not isinstance(document, TokenRow):
            raise DataError(
                f"Row {number} of {name} is text, and the rows before it were contexts. Set rows='documents'."
            )
        if len(document.ids) > self.ctx_len:
            raise DataError(
                f"Row {number} of {name} has {len(document.ids)} tokens, and contexts have ctx_len={self.ctx_len}. "
                "Set ctx_len to that, or rows='documents' to pack the rows anew."
            )
        if self.bos is not None and document.ids[:1] != [self.bos] and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "The rows of %s are used as contexts as they are, and do not begin with the BOS token %d; "
                "bos='context' inserts it.",
                name,
                self.bos,
            )
        return Row(document.ids, runs_of(document, number))


def _row_of(ids: list[int], inserted: list[int], document: int, place: int = 0) -> Row:
    """Returns a context of one document, with the place there of its first token of text."""
    runs: list[Run] = []
    for is_inserted, group in groupby(inserted):
        n = sum(1 for _ in group)
        runs.append(Run(n, document, -1 if is_inserted else place))
        place += 0 if is_inserted else n
    return Row(ids, runs)
