"""Documents joined, and cut into full contexts.

Documents come in as pieces: stretches of token ids, each with its document and the place of its first token there. BOS tokens and
separators that are put in are pieces of their own, with the place -1. Contexts are cut off in front.
"""

from collections import deque
from typing import Any

from dictionary_learning.data.document import TokenRow
from dictionary_learning.data.feed import Feed
from dictionary_learning.data.special_tokens import SpecialTokens
from dictionary_learning.data.token_batch import Row, Run
from dictionary_learning.data.tokenizing import runs_of, tokenize

_PUT_IN = -1
_ONE_LONG_TEXT = -1
_DOCUMENTS_AT_ONCE = 8
"""Documents tokenized in one call: enough for the tokenizer's threads, few enough to start at once."""


class Packer:
    """Tokens of documents that no context holds yet.

    Args:
        special: which tokens are put in, and where.
        ctx_len: tokens in a context.
    """

    def __init__(self, special: SpecialTokens, ctx_len: int):
        self.special, self.ctx_len = special, ctx_len
        self.clear()

    def clear(self) -> None:
        """Forgets all tokens."""
        self._pieces: deque[tuple[list[int], int, int]] = deque()  # ids, document, place of the first
        self._used = 0  # tokens of the first piece that a context holds already
        self._open: list[int] | None = None  # text, place and document with which an unfinished document goes on
        self._last: int | None = None
        self.n = 0
        """How many tokens there are."""

    def add(self, ids: list[int], document: int) -> None:
        """Takes in a whole document; one without tokens is none."""
        if ids:
            self.close()
            self._begin(ids, document)
            self._put(ids, document, 0)
            self._end(document)

    def add_piece(self, ids: list[int], document: int, start: int, text: int) -> None:
        """Takes in a piece of a document; it goes on with the last piece, if it is of the same text and follows on it.

        Args:
            ids: the tokens.
            document: the number of the document.
            start: the place of the first token in the text.
            text: which text.
        """
        if not ids:
            return
        if self._open is None or self._open[:2] != [text, start]:
            self.close()
            self._begin(ids, document)
        self._put(ids, document, start)
        self._open = [text, start + len(ids), document]

    def close(self) -> None:
        """Ends the document that was taken in piece by piece."""
        if self._open is not None:
            self._end(self._open[2])
            self._open = None

    def take(self) -> Row | None:
        """Returns a context, full if there are tokens enough; None if there are none."""
        if not self.n:
            return None
        ids: list[int] = []
        runs: list[Run] = []
        head, document, _ = self._pieces[0]
        if self.special.at_context and head[self._used] != self.special.bos:
            assert self.special.bos is not None
            ids.append(self.special.bos)
            runs.append(Run(1, document, _PUT_IN))
        while self._pieces and len(ids) < self.ctx_len:
            head, document, start = self._pieces[0]
            stop = min(len(head), self._used + self.ctx_len - len(ids))
            ids += head[self._used : stop]
            taken = stop - self._used
            runs.append(Run(taken, document, start if start == _PUT_IN else start + self._used))
            self.n -= taken
            self._used = stop
            if stop == len(head):
                self._pieces.popleft()
                self._used = 0
        return Row(ids, runs)

    def state_dict(self) -> dict[str, Any]:
        """Returns the tokens that no context holds yet."""
        return {
            "pieces": [[list(ids), document, start] for ids, document, start in self._pieces],
            "used": self._used,
            "open": self._open,
            "last": self._last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        self._pieces = deque((list(ids), document, start) for ids, document, start in state["pieces"])
        self._used, self._last = state["used"], state["last"]
        self._open = list(state["open"]) if state["open"] is not None else None
        self.n = sum(len(ids) for ids, _, _ in self._pieces) - self._used

    def _begin(self, ids: list[int], document: int) -> None:
        # text that a chat template wrote, and ids that were made before, may bring their own; and one token may be both
        marked = ids[0] == self.special.bos or (self._last == self.special.separator == self.special.bos)
        if self.special.at_document and not marked:
            assert self.special.bos is not None
            self._put([self.special.bos], document, _PUT_IN)

    def _end(self, document: int) -> None:
        if self.special.separator is not None and self._last != self.special.separator:
            self._put([self.special.separator], document, _PUT_IN)

    def _put(self, ids: list[int], document: int, start: int) -> None:
        self._pieces.append((ids, document, start))
        self._last = ids[-1]
        self.n += len(ids)


class PackedContexts:
    """Full contexts of joined documents.

    Args:
        feed: the documents.
        tokenizer: makes ids of text.
        special: which tokens are put in, and where.
        ctx_len: tokens in a context.
    """

    def __init__(self, feed: Feed, tokenizer: Any, special: SpecialTokens, ctx_len: int):
        self.feed, self.tokenizer, self.ctx_len = feed, tokenizer, ctx_len
        self.packer = Packer(special, ctx_len)

    def take(self, n: int) -> list[Row]:
        """Returns the next n contexts; fewer, and the last not full, where the documents end."""
        rows: list[Row] = []
        for _ in range(n):
            if self.packer.n < self.ctx_len:
                self._read()
            row = self.packer.take()
            if row is None:
                break
            rows.append(row)
        return rows

    def clear(self) -> None:
        """Forgets what was read and is in no context."""
        self.packer.clear()

    def state_dict(self) -> dict[str, Any]:
        """Returns the tokens that are in no context yet."""
        return self.packer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        self.packer.load_state_dict(state)

    def _read(self) -> None:
        """Takes in documents until a context can be filled, or there are no more."""
        while self.packer.n < self.ctx_len:
            numbered = self.feed.take(_DOCUMENTS_AT_ONCE)
            if not numbered:
                self.packer.close()
                return
            tokenized = tokenize([document for _, document in numbered], self.tokenizer)
            for (number, _), ids in zip(numbered, tokenized, strict=True):
                self._add(ids, number)

    def _add(self, ids: list[int] | TokenRow, number: int) -> None:
        if not isinstance(ids, TokenRow):
            self.packer.add(ids, number)
        elif ids.runs is not None:
            at = 0
            for run in runs_of(ids, number):
                if run.start >= 0:
                    self.packer.add_piece(ids.ids[at : at + run.n], run.document, run.start, run.document)
                at += run.n
        elif ids.start is not None:
            self.packer.add_piece(ids.ids, number, ids.start, _ONE_LONG_TEXT)
        else:
            self.packer.add(ids.ids, number)
