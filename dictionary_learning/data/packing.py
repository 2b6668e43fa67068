"""Packed contexts: documents joined, and cut into full contexts.

Documents are stored as pieces: stretches of token ids, each with its document and the position of
its first token there. Inserted BOS tokens and separators are pieces with the position -1. Contexts
are cut off at the front.
"""

from collections import deque
from typing import Any, NamedTuple

from dictionary_learning.data.document import TokenRow
from dictionary_learning.data.source import EpochReader
from dictionary_learning.data.token_batch import Row, Run
from dictionary_learning.data.tokenizing import SpecialTokens, runs_of, tokenize

_INSERTED = -1  # the position of tokens that are in no document
_ONE_LONG_TEXT = -1  # the text of pieces that belong to one array
_N_TOKENIZED = 8  # documents per call: enough for the tokenizer's threads, few enough to start at once


class _Piece(NamedTuple):
    ids: list[int]
    document: int
    start: int


class Packer:
    """A queue of tokens from which contexts are cut.

    Args:
        special: The tokens that are inserted, and where.
        ctx_len: Tokens in a context.
    """

    def __init__(self, special: SpecialTokens, ctx_len: int):
        self.special, self.ctx_len = special, ctx_len
        self.clear()

    def clear(self) -> None:
        """Removes all tokens."""
        self._pieces: deque[_Piece] = deque()
        self._used = 0  # tokens of the first piece that are in a context already
        self._open: list[int] | None = None  # text, position and document that continue an unfinished document
        self._last: int | None = None
        self.n = 0
        """The number of tokens in the queue."""

    def add(self, ids: list[int], document: int) -> None:
        """Appends a whole document; one without tokens is ignored."""
        if ids:
            self.close()
            self._begin(ids, document)
            self._append(ids, document, 0)
            self._end(document)

    def add_piece(self, ids: list[int], document: int, start: int, text: int) -> None:
        """Appends a piece of a document, which continues the last piece if it follows on it.

        Args:
            ids: The tokens.
            document: The number of the document.
            start: The position of the first token in the text.
            text: The text: a piece continues only one of the same text.
        """
        if not ids:
            return
        if self._open is None or self._open[:2] != [text, start]:
            self.close()
            self._begin(ids, document)
        self._append(ids, document, start)
        self._open = [text, start + len(ids), document]

    def close(self) -> None:
        """Ends the document that was appended piece by piece."""
        if self._open is not None:
            self._end(self._open[2])
            self._open = None

    def take(self) -> Row | None:
        """Returns a context, full if there are enough tokens; None if there are none."""
        if not self.n:
            return None
        ids: list[int] = []
        runs: list[Run] = []
        head = self._pieces[0]
        if self.special.at_context and head.ids[self._used] != self.special.bos:
            assert self.special.bos is not None
            ids.append(self.special.bos)
            runs.append(Run(1, head.document, _INSERTED))
        while self._pieces and len(ids) < self.ctx_len:
            head = self._pieces[0]
            stop = min(len(head.ids), self._used + self.ctx_len - len(ids))
            n_taken = stop - self._used
            ids += head.ids[self._used : stop]
            start = head.start if head.start == _INSERTED else head.start + self._used
            runs.append(Run(n_taken, head.document, start))
            self.n -= n_taken
            self._used = stop
            if stop == len(head.ids):
                self._pieces.popleft()
                self._used = 0
        return Row(ids, runs)

    def state_dict(self) -> dict[str, Any]:
        """Returns the tokens that are in no context yet."""
        pieces = [[list(ids), document, start] for ids, document, start in self._pieces]
        return {"pieces": pieces, "used": self._used, "open": self._open, "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the tokens of a state."""
        self._pieces = deque(_Piece(list(ids), document, start) for ids, document, start in state["pieces"])
        self._used, self._last = state["used"], state["last"]
        self._open = list(state["open"]) if state["open"] is not None else None
        self.n = sum(len(piece.ids) for piece in self._pieces) - self._used

    def _begin(self, ids: list[int], document: int) -> None:
        # rendered conversations and token ids may bring their own BOS; BOS and separator may be one token
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
        self.n += len(ids)


class PackedContexts:
    """Full contexts of joined documents.

    Args:
        documents: The documents.
        tokenizer: Makes ids of text.
        special: The tokens that are inserted, and where.
        ctx_len: Tokens in a context.
    """

    def __init__(self, documents: EpochReader, tokenizer: Any, special: SpecialTokens, ctx_len: int):
        self.documents, self.tokenizer, self.ctx_len = documents, tokenizer, ctx_len
        self.packer = Packer(special, ctx_len)
        self.clear = self.packer.clear
        self.state_dict, self.load_state_dict = self.packer.state_dict, self.packer.load_state_dict

    def take(self, n: int) -> list[Row]:
        """Returns the next n contexts; at the end of the data fewer, the last of them not full."""
        rows: list[Row] = []
        while len(rows) < n:
            self._fill()
            row = self.packer.take()
            if row is None:
                break
            rows.append(row)
        return rows

    def _fill(self) -> None:
        """Reads documents until a context is full, or there are no more."""
        while self.packer.n < self.ctx_len:
            numbered = self.documents.take(_N_TOKENIZED)
            if not numbered:
                self.packer.close()
                return
            tokenized = tokenize([document for _, document in numbered], self.tokenizer)
            for (number, _), ids in zip(numbered, tokenized, strict=True):
                self._add(ids, number)

    def _add(self, ids: list[int] | TokenRow, number: int) -> None:
        if not isinstance(ids, TokenRow):
            self.packer.add(ids, number)
        elif ids.runs is not None:  # a context that `pretokenize` wrote
            at = 0
            for run in runs_of(ids, number):
                if run.start >= 0:
                    self.packer.add_piece(ids.ids[at : at + run.n], run.document, run.start, run.document)
                at += run.n
        elif ids.start is not None:
            self.packer.add_piece(ids.ids, number, ids.start, _ONE_LONG_TEXT)
        else:
            self.packer.add(ids.ids, number)
