"""Contexts that are not packed: one for each document, or rows that are contexts already."""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

from dictionary_learning.data.document import Document, TokenRow
from dictionary_learning.data.feed import Feed
from dictionary_learning.data.token_batch import Row, Run
from dictionary_learning.data.tokenizing import as_texts, framed_row, runs_of, tokenize_framed
from dictionary_learning.errors import DataError

logger = logging.getLogger(__name__)


class PaddedContexts:
    """One context for each document, or several for a long one.

    Args:
        feed: the documents.
        tokenizer: makes ids of text.
        framing: what is put around a document: what the `tokenizer` puts there, that and a `bos`, or `nothing`.
        ctx_len: tokens in a context at most.
        long_documents: whether the rest of a long document is `cut`, or makes further contexts (`split`).
    """

    def __init__(
        self,
        feed: Feed,
        tokenizer: Any,
        framing: Literal["tokenizer", "bos", "nothing"],
        ctx_len: int,
        long_documents: Literal["cut", "split"],
    ):
        self.feed, self.tokenizer, self.framing = feed, tokenizer, framing
        self.ctx_len, self.long_documents = ctx_len, long_documents
        self.bos = None if tokenizer is None else tokenizer.bos_token_id
        self.n_cut = 0
        """Tokens of long documents that were dropped."""
        self.clear()

    def clear(self) -> None:
        """Forgets what was read and is in no context."""
        self._waiting: deque[Row] = deque()

    def take(self, n: int) -> list[Row]:
        """Returns the next n contexts; fewer where the documents end."""
        while len(self._waiting) < n:
            numbered = self.feed.take(n - len(self._waiting))
            if not numbered:
                break
            framed = self._framed([document for _, document in numbered])
            for (number, _), (ids, put_in) in zip(numbered, framed, strict=True):
                self._waiting.extend(self._contexts(ids, put_in, number))
        return [self._waiting.popleft() for _ in range(min(n, len(self._waiting)))]

    def state_dict(self) -> dict[str, Any]:
        """Returns the contexts that were not given yet, and the count of tokens dropped."""
        waiting = [[row.ids, [list(run) for run in row.runs]] for row in self._waiting]
        return {"waiting": waiting, "n_cut": self.n_cut}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        self._waiting = deque(Row(list(ids), [Run(*run) for run in runs]) for ids, runs in state["waiting"])
        self.n_cut = state["n_cut"]

    def _framed(self, documents: Sequence[Document]) -> list[tuple[list[int], list[int]]]:
        """Returns the ids of each document, and which of them were put in."""
        rows = {n: (d.ids, [0] * len(d.ids)) for n, d in enumerate(documents) if isinstance(d, TokenRow)}
        others = [n for n in range(len(documents)) if n not in rows]
        if others:
            texts = as_texts([documents[n] for n in others], self.tokenizer)
            made = tokenize_framed(texts, self.tokenizer, special=self.framing != "nothing")
            rows.update(zip(others, made, strict=True))
        return [self._with_one_bos(*rows[n]) for n in range(len(documents))]

    def _with_one_bos(self, ids: list[int], put_in: list[int]) -> tuple[list[int], list[int]]:
        if self.bos is None or not ids:
            return ids, put_in
        if self.framing == "bos" and ids[0] != self.bos:
            return [self.bos, *ids], [1, *put_in]
        # a chat template writes BOS, and the tokenizer puts another one before it
        while len(ids) > 1 and put_in[0] and ids[0] == ids[1] == self.bos:
            ids, put_in = ids[1:], [1, *put_in[2:]]
        return ids, put_in

    def _contexts(self, ids: list[int], put_in: list[int], number: int) -> list[Row]:
        if not ids:
            return []
        if len(ids) <= self.ctx_len:
            return [framed_row(ids, put_in, number)]
        if self.long_documents == "cut":
            if not self.n_cut:
                logger.warning(
                    "Documents of %s are longer than ctx_len=%d tokens and are cut; long_documents='split' or pack=True reads all of them.",
                    self.feed.source.name,
                    self.ctx_len,
                )
            self.n_cut += len(ids) - self.ctx_len
            return [framed_row(ids[: self.ctx_len], put_in[: self.ctx_len], number)]
        lead = ids[:1] if ids[0] == self.bos else []
        rows = [framed_row(ids[: self.ctx_len], put_in[: self.ctx_len], number)]
        at = self.ctx_len
        while at < len(ids):
            stop = at + self.ctx_len - len(lead)
            part, mask = lead + ids[at:stop], [1] * len(lead) + put_in[at:stop]
            rows.append(framed_row(part, mask, number, at - sum(put_in[:at])))
            at = stop
        return rows


class ReadyContexts:
    """Rows of token ids that are contexts, as they are.

    Args:
        feed: the rows.
        ctx_len: tokens in a context at most.
        bos: the token that a context is expected to begin with; None for any.
    """

    def __init__(self, feed: Feed, ctx_len: int, bos: int | None):
        self.feed, self.ctx_len, self.bos = feed, ctx_len, bos
        self._warned = False

    def take(self, n: int) -> list[Row]:
        """Returns the next n contexts; fewer where the rows end.

        Raises:
            DataError: a row is longer than a context, or is no row of token ids.
        """
        rows: list[Row] = []
        while len(rows) < n:
            numbered = self.feed.take(n - len(rows))
            if not numbered:
                break
            rows += [self._row(document, number) for number, document in numbered]
        return [row for row in rows if row.ids]

    def clear(self) -> None:
        """Has nothing to forget."""

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: each row is a context."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Has nothing to load."""

    def _row(self, document: Document, number: int) -> Row:
        where = f"Row {number} of {self.feed.source.name}"
        if not isinstance(document, TokenRow):
            raise DataError(f"{where} is text, and the rows before it were contexts. Set rows='documents'.")
        if len(document.ids) > self.ctx_len:
            raise DataError(
                f"{where} has {len(document.ids)} tokens, and contexts have ctx_len={self.ctx_len}. Set ctx_len to that, or rows='documents' "
                "to pack the rows anew."
            )
        if self.bos is not None and document.ids[:1] != [self.bos] and not self._warned:
            self._warned = True
            logger.warning(
                "The rows of %s are taken as contexts as they are, and do not begin with the BOS token %d; bos='context' puts it there.",
                self.feed.source.name,
                self.bos,
            )
        return Row(document.ids, runs_of(document, number))
