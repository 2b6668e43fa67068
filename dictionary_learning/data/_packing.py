"""Packed contexts: documents joined, and cut into full contexts.

Documents are stored as pieces: stretches of token ids, each with its document and the position of
its first token there. Inserted BOS tokens and separators are pieces with the position -1. Contexts
are cut off at the front.
"""

from collections import deque
from typing import Any, NamedTuple

from dictionary_learning.data._document import Document, TokenRow
from dictionary_learning.data._source import EpochReader
from dictionary_learning.data._token_batch import Row, Run
from dictionary_learning.data._tokenizing import SpecialTokens, runs_of, tokenize

_INSERTED = -1  # the position of tokens that are in no document
_ONE_LONG_TEXT = -1  # the text of pieces that belong to one array
_N_TOKENIZED = 8  # enough for the tokenizer's threads, few enough to start at once


class _Piece(NamedTuple):
    ids: list[int]
    document: int
    start: int


class PackedContexts:
    """Full contexts of joined documents."""

    def __init__(self, documents: EpochReader, tokenizer: Any, special: SpecialTokens, ctx_len: int):
        self.documents, self.tokenizer, self.special, self.ctx_len = documents, tokenizer, special, ctx_len
        self.clear()

    def clear(self) -> None:
        """Drops the tokens that are in no context yet."""
        self._pieces: deque[_Piece] = deque()
        self._used = 0  # tokens of the first piece that are in a context already
        self._open: list[int] | None = None  # text, position and document of what may go on
        self._last: int | None = None  # the last token
        self._n = 0  # tokens in the queue

    def take(self, n: int) -> list[Row]:
        """Returns the next n contexts; at the end of the data fewer, the last of them not full."""
        rows: list[Row] = []
        while len(rows) < n:
            self._fill()
            row = self._cut()
            if row is None:
                break
            rows.append(row)
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Returns the tokens that are in no context yet."""
        pieces = [[ids, document, start] for ids, document, start in self._pieces]
        return {"pieces": pieces, "used": self._used, "open": self._open, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._pieces = deque(_Piece(list(ids), document, start) for ids, document, start in state["pieces"])
        self._used, self._last = state["used"], state["last"]
        self._open = list(state["open"]) if state["open"] is not None else None
        self._n = sum(len(piece.ids) for piece in self._pieces) - self._used

    def _fill(self) -> None:
        """Reads documents until a context is full, or there are no more."""
        while self._n < self.ctx_len:
            numbered = self.documents.take(_N_TOKENIZED)
            if not numbered:
                self._close()
                return
            tokenized = tokenize([document for _, document in numbered], self.tokenizer, special=False)
            for (number, document), (ids, _) in zip(numbered, tokenized, strict=True):
                self._add(document, ids, number)

    def _add(self, document: Document, ids: list[int], number: int) -> None:
        row = document if isinstance(document, TokenRow) else TokenRow(ids)
        if row.runs is not None:  # a context that `pretokenize` wrote
            at = 0
            for run in runs_of(row, number):
                if run.start >= 0:
                    self._add_piece(ids[at : at + run.n], run.document, run.start, run.document)
                at += run.n
        elif row.start is not None:
            self._add_piece(ids, number, row.start, _ONE_LONG_TEXT)
        elif ids:
            self._close()
            self._begin(ids, number)
            self._append(ids, number, 0)
            self._end(number)

    def _add_piece(self, ids: list[int], document: int, start: int, text: int) -> None:
        """Appends a piece, which continues the last one if it follows on it in the same text."""
        if not ids:
            return
        if self._open is None or self._open[:2] != [text, start]:
            self._close()
            self._begin(ids, document)
        self._append(ids, document, start)
        self._open = [text, start + len(ids), document]

    def _close(self) -> None:
        if self._open is not None:
            self._end(self._open[2])
            self._open = None

    def _begin(self, ids: list[int], document: int) -> None:
        # conversations and token ids may contain BOS; BOS and separator may be one token
        has_bos = ids[0] == self.special.bos or (self._last == self.special.separator == self.special.bos)
        if self.special.at_document and not has_bos:
            assert self.special.bos is not None
            self._append([self.special.bos], document, _INSERTED)

    def _end(self, document: int) -> None:
        if self.special.separator is not None and self._last != self.special.separator:
            self._append([self.special.separator], document, _INSERTED)

    def _append(self, ids: list[int], document: int, start: int) -> None:
        self._pieces.append(_Piece(ids, document, start))
        self._last = ids[-1]
        self._n += len(ids)

    def _cut(self) -> Row | None:
        """Cuts off a context, full if there are enough tokens; None if there are none."""
        if not self._n:
            return None
        ids: list[int] = []
        runs: list[Run] = []
        head = self._pieces[0]
        # a document that starts here has its BOS already
        if self.special.at_context and head.ids[self._used] != self.special.bos:
            assert self.special.bos is not None
            ids.append(self.special.bos)
            runs.append(Run(1, head.document, _INSERTED))
        while self._pieces and len(ids) < self.ctx_len:
            head = self._pieces[0]
            stop = min(len(head.ids), self._used + self.ctx_len - len(ids))  # of the piece or context
            n_taken = stop - self._used
            ids += head.ids[self._used : stop]
            start = head.start if head.start == _INSERTED else head.start + self._used
            runs.append(Run(n_taken, head.document, start))
            self._n -= n_taken
            self._used = stop
            if stop == len(head.ids):
                self._pieces.popleft()
                self._used = 0
        return Row(ids, runs)
