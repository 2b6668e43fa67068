"""Contexts of token ids from documents.

Packed (the default), documents are joined and cut into full contexts: nothing is padded but the last context of the
data, and every token is in exactly one context. Where the tokenizer has a BOS token, each document and each context
begins with one; where it has none, its EOS token ends each document.

Padded, each document is one context, cut at its length and padded on the tokenizer's side.

Token ids that were made before take the same ways. Rows that are contexts of this length already are served as they are; rows that
`pretokenize` made for another length or rule are taken apart into documents and packed anew.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

from dictionary_learning.data.feed import Feed
from dictionary_learning.data.packing import PackedContexts
from dictionary_learning.data.padding import PaddedContexts, ReadyContexts
from dictionary_learning.data.source import Source
from dictionary_learning.data.special_tokens import BosPolicy, special_tokens
from dictionary_learning.data.token_batch import Row, TokenBatch, collate
from dictionary_learning.data.tokenizing import tokenize_framed
from dictionary_learning.data.vocabulary import check_tokenizer, size
from dictionary_learning.errors import ConfigError, DataError

__all__ = ["TokenBatch", "TokenStream"]


class TokenStream:
    """Contexts of tokens, as many at a time as are asked for.

    Args:
        source: the documents.
        tokenizer: a Hugging Face tokenizer; it is not changed. None will do where the source gives token ids.
        ctx_len: tokens in a context, BOS included.
        pack: whether documents are joined and cut into full contexts, or padded one by one.
        add_special_tokens: whether BOS and EOS are put in as said above (packed) or as the tokenizer does (padded).
        bos: what begins with BOS: `document`, `context`, `both` or `none`; by default as said above.
        separator: ends each packed document: "eos", "bos", a token or its id, None for nothing; "auto" as said above.
        padding_side: where padding stands; by default the tokenizer's side when documents are padded, behind when they are packed.
        long_documents: what becomes of padded documents longer than a context: `cut` drops the rest, `split` makes further contexts of it.
        rows: what rows of token ids are: `contexts`, `documents`, or `auto`: contexts if all are ctx_len long.
        epochs: how often the source is read; None for without end.
        vocab_size: the number of ids that the model knows; by default the tokenizer's.

    Raises:
        DataError: there is no tokenizer, or the token ids were made by another one.
        ConfigError: a context is too short to hold a token beside BOS, or settings contradict each other.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Any,
        *,
        ctx_len: int,
        pack: bool = True,
        add_special_tokens: bool = True,
        bos: BosPolicy | None = None,
        separator: int | str | None = "auto",
        padding_side: Literal["left", "right"] | None = None,
        long_documents: Literal["cut", "split"] = "cut",
        rows: Literal["auto", "contexts", "documents"] = "auto",
        epochs: int | None = 1,
        vocab_size: int | None = None,
    ):
        if tokenizer is None and source.tokenized is None:
            raise DataError("The model has no tokenizer. Pass tokenizer= to load_model, with the model.")
        if ctx_len < 2:
            raise ConfigError(f"Got ctx_len={ctx_len}; a context needs at least 2 tokens.")
        if not pack and separator not in ("auto", None):
            raise ConfigError(f"Got separator={separator!r} with pack=False; only packed documents are separated.")
        _check_options(padding_side=padding_side, long_documents=long_documents, rows=rows)
        check_tokenizer(source, tokenizer)
        self.source, self.tokenizer, self.ctx_len, self.pack = source, tokenizer, ctx_len, pack
        self.add_special_tokens, self._bos_policy = add_special_tokens, bos
        self.long_documents: Literal["cut", "split"] = long_documents
        self.special = special_tokens(
            tokenizer, bos=bos, separator=separator if pack else None, add_special_tokens=add_special_tokens
        )
        self.padding_side = padding_side or ("right" if pack or tokenizer is None else tokenizer.padding_side)
        self._vocab_size = vocab_size
        self.feed = Feed(source, epochs, lambda: self.vocab_size)
        self._contexts = self._maker(rows)

    @cached_property
    def vocab_size(self) -> int | None:
        """Returns how many ids are known."""
        return self._vocab_size or (None if self.tokenizer is None else size(self.tokenizer))

    @property
    def bos(self) -> int | None:
        """Returns the BOS token, where any is put in."""
        return self.special.bos

    @property
    def separator(self) -> int | None:
        """Returns the token that ends each packed document."""
        return self.special.separator

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Returns the ids that are put in by us, by the tokenizer or by who made the ids, and stand for no text."""
        known = [self.special.bos, self.special.separator]
        if self.tokenizer is not None:
            begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            if not self.pack:
                known.append(begin if begin is not None else end if self.add_special_tokens else None)
            if not self.pack and self.add_special_tokens and self._bos_policy != "none":
                ((ids, put_in),) = tokenize_framed([""], self.tokenizer, special=True)
                known += [i for i, special in zip(ids, put_in, strict=True) if special]
            if self.source.tokenized is not None:
                known += [begin, end]
        return tuple(dict.fromkeys(i for i in known if i is not None))

    @property
    def packing(self) -> dict[str, Any]:
        """Returns how documents become contexts, as plain data: with the same, and the same ctx_len, contexts are the same."""
        if self.pack:
            return {"pack": True, **vars(self.special)}
        rule = {"bos": self._bos_policy, "add_special_tokens": self.add_special_tokens}
        return {"pack": False, **rule, "long_documents": self.long_documents}

    @property
    def n_tokens_cut(self) -> int:
        """Returns how many tokens of padded documents were dropped, because their contexts were full."""
        return getattr(self._contexts, "n_cut", 0)

    @property
    def epoch(self) -> int:
        """Returns how many passes over the source have ended."""
        return self.feed.epoch

    def take(self, n: int) -> TokenBatch | None:
        """Returns the next n contexts, fewer where the data ends, and None after that."""
        rows = self.take_rows(n)
        if not rows:
            return None
        width = self.ctx_len if self.pack else max(len(row.ids) for row in rows)
        return collate(rows, width, self._padding_id(), self.padding_side)

    def take_rows(self, n: int) -> list[Row]:
        """Returns the next n contexts as they are before they are padded; fewer where the data ends."""
        return self._contexts.take(n)

    def batches(self, n: int) -> Iterator[TokenBatch]:
        """Iterates over the rest of the data, n contexts at a time."""
        while (batch := self.take(n)) is not None:
            yield batch

    def restart(self) -> None:
        """Begins again at the first document."""
        self.source.restart()
        self.feed.clear()
        self._contexts.clear()

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the text, and the tokens read that no context holds yet, as plain data."""
        return {**self.feed.state_dict(), "contexts": self._contexts.state_dict(), "rule": self._rule()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position.

        Raises:
            ConfigError: the state is of a stream that makes other contexts.
        """
        if state["rule"] != self._rule():
            raise ConfigError(
                f"The state is of contexts made by {state['rule']}, and these are made by {self._rule()}. Build it with the same settings."
            )
        self.feed.load_state_dict(state)
        self._contexts.load_state_dict(state["contexts"])

    def _rule(self) -> dict[str, Any]:
        return {"ctx_len": self.ctx_len, "as they are": isinstance(self._contexts, ReadyContexts), **self.packing}

    def _padding_id(self) -> int:
        if self.tokenizer is None:
            return 0
        padding = self.tokenizer.pad_token_id
        return padding if padding is not None else self.tokenizer.eos_token_id or 0

    def _maker(self, rows: str) -> PackedContexts | PaddedContexts | ReadyContexts:
        if self._are_contexts(rows):
            return ReadyContexts(self.feed, self.ctx_len, self.special.bos if self.special.at_context else None)
        if self.pack:
            return PackedContexts(self.feed, self.tokenizer, self.special, self.ctx_len)
        framing: Literal["tokenizer", "bos", "nothing"] = "tokenizer"
        if not self.add_special_tokens or self._bos_policy == "none":
            framing = "nothing"
        elif self._bos_policy is not None:
            framing = "bos"
        return PaddedContexts(self.feed, self.tokenizer, framing, self.ctx_len, self.long_documents)

    def _are_contexts(self, rows: str) -> bool:
        """Returns whether the rows of the source are the contexts that are wanted."""
        known = self.source.tokenized
        if known is None or rows == "documents":
            return False
        if known.packing is None:
            # rows that somebody else made: where BOS is asked for, it must not be left to them
            likely = self.pack and known.ctx_len == self.ctx_len and self._bos_policy in (None, "none")
            return rows == "contexts" or likely
        alike = known.ctx_len == self.ctx_len and known.packing == self.packing
        if not alike and (rows == "contexts" or not (self.pack and known.packing["pack"])):
            raise ConfigError(
                f"{self.source.name} holds contexts of {known.ctx_len} tokens, made by {known.packing}; asked for are contexts of "
                f"{self.ctx_len}, made by {self.packing}. Ask for the same, or give the text itself."
            )
        return alike


def _check_options(**given: str | None) -> None:
    known = {
        "padding_side": (None, "left", "right"),
        "long_documents": ("cut", "split"),
        "rows": ("auto", "contexts", "documents"),
    }
    for name, value in given.items():
        if value not in known[name]:
            raise ConfigError(f"Got {name}={value!r}; it is one of {', '.join(map(repr, known[name]))}.")
