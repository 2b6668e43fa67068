"""Contexts of token ids from documents.

Packed (the default), documents are joined and cut into full contexts: only the last context of the
data is padded, and every token is in exactly one context. If the tokenizer has a BOS token, each
document and each context begins with one; else its EOS token ends each document.

Padded, each document is one context, cut at its length and padded on the tokenizer's side.

Token ids that were made before become contexts in the same ways. Rows that are contexts of this
length already are served as they are; rows that `pretokenize` wrote for another length or rule are
split into their documents and packed again.
"""

import copy
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal

from dictionary_learning._border import as_tokenizer, checked
from dictionary_learning.data._packing import PackedContexts
from dictionary_learning.data._padding import Framing, PaddedContexts, ReadyContexts
from dictionary_learning.data._source import EpochReader, Source
from dictionary_learning.data._token_batch import Row, TokenBatch, collate
from dictionary_learning.data._tokenizing import (
    NO_TOKENIZER,
    BosPolicy,
    check_tokenizer,
    special_tokens,
    tokenize,
    vocabulary_size,
)
from dictionary_learning.errors import ConfigError, DataError


class TokenStream:
    """Contexts of tokens.

    Args:
        source: The documents.
        tokenizer: A Hugging Face tokenizer, which is not changed; None for a source of token ids.
        ctx_len: Tokens in a context, BOS included.
        pack: Joins documents and cuts them into full contexts; else each document is padded.
        add_special_tokens: Inserts BOS and EOS: packed as above, padded as the tokenizer does.
        bos: What begins with BOS: `document`, `context`, `both`, `none`; the default is above.
        separator: The token that ends each packed document: "eos", "bos", a token or its id, None
            for no token; see above for "auto".
        padding_side: The side of the padding; by default the tokenizer's for padded documents, and
            the right for packed ones.
        long_documents: What happens to padded documents that are longer than a context: `cut` drops
            the rest, `split` makes further contexts of it.
        rows: What rows of token ids are: `contexts`, `documents`, or `auto`: contexts if all have
            the length ctx_len.
        epochs: The number of passes over the source; None for no limit.
        vocab_size: The number of known token ids; by default that of the tokenizer and the model.
        n_embeddings: The number of token ids that the model has embeddings for.

    Raises:
        DataError: There is no tokenizer, or another one made the token ids.
        ConfigError: A context is too short to hold a token beside BOS, or settings contradict each
            other.
    """

    @checked()
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
        n_embeddings: int | None = None,
    ):
        tokenizer = as_tokenizer(tokenizer)
        if tokenizer is None and source.tokenized is None:
            raise DataError(NO_TOKENIZER)
        if ctx_len < 2:
            raise ConfigError(f"Got ctx_len={ctx_len}; a context needs at least 2 tokens.")
        if not pack and separator not in ("auto", None):
            raise ConfigError(f"Got separator={separator!r} with pack=False; only packed documents are separated.")
        if pack and long_documents != "cut":
            raise ConfigError(
                f"Got long_documents={long_documents!r} with pack=True; packed documents are not cut. Leave it out, or "
                "set pack=False."
            )
        check_tokenizer(source, tokenizer)
        self.source, self.tokenizer, self.ctx_len, self.pack = source, tokenizer, ctx_len, pack
        self.add_special_tokens, self._bos_policy = add_special_tokens, bos
        self.long_documents: Literal["cut", "split"] = long_documents
        self.special = special_tokens(
            tokenizer, bos=bos, separator=separator if pack else None, add_special_tokens=add_special_tokens
        )
        self.padding_side = padding_side or ("right" if pack or tokenizer is None else tokenizer.padding_side)
        self.n_embeddings, self._vocab_size = n_embeddings, vocab_size
        if isinstance(separator, int) and self.vocab_size is not None and not 0 <= separator < self.vocab_size:
            raise ConfigError(f"Got separator={separator}; the vocabulary has the ids 0 to {self.vocab_size - 1}.")
        self._documents = EpochReader(source, epochs, lambda: self.vocab_size)
        self._rows = rows
        self._contexts = self._context_maker(rows)
        self._before: dict[str, Any] | None = None  # the state before a call that has not returned
        self._is_released = False  # whether somebody says which states are not loaded again

    @property
    def begins_with_bos(self) -> bool | None:
        """Whether every context begins with BOS; None where token ids were made before."""
        return self.special.at_context if self.source.tokenized is None else None

    @cached_property  # reads the whole vocabulary
    def vocab_size(self) -> int | None:
        """The number of known token ids."""
        known = [self.n_embeddings, None if self.tokenizer is None else vocabulary_size(self.tokenizer)]
        return self._vocab_size or min((n for n in known if n is not None), default=None)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids that are not text, inserted here, by the tokenizer or in the data."""
        # None is dropped at the end
        known = [self.special.bos, self.special.separator]
        if self.tokenizer is not None:
            bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            if not self.pack:
                known.append(bos if bos is not None else eos if self.add_special_tokens else None)
            if not self.pack and self.add_special_tokens and self._bos_policy != "none":
                # what the tokenizer puts around a text is found by tokenizing an empty one
                ((ids, inserted),) = tokenize([""], self.tokenizer, special=True)
                known += [i for i, is_inserted in zip(ids, inserted, strict=True) if is_inserted]
            if self.source.tokenized is not None:  # whoever made the ids may have inserted either
                known += [bos, eos]
        return tuple(dict.fromkeys(i for i in known if i is not None))

    @property
    def packing(self) -> dict[str, Any]:
        """The rule by which documents become contexts; it and ctx_len decide on the contexts."""
        if self.pack:
            return {"pack": True, **vars(self.special)}
        rule = {"bos": self._bos_policy, "add_special_tokens": self.add_special_tokens}
        return {"pack": False, **rule, "long_documents": self.long_documents}

    @property
    def n_tokens_cut(self) -> int:
        """The number of tokens of padded documents that were dropped."""
        return getattr(self._contexts, "n_cut", 0)

    @property
    def epoch(self) -> int:
        """The number of passes over the source that have ended."""
        return self._documents.epoch

    @checked()
    def take(self, n: int) -> TokenBatch | None:
        """Returns the next n contexts, fewer at the end of the data, and None after it.

        Raises:
            DataError: The tokenizer made an id that the model has no embedding for.
        """
        rows = self.take_rows(n)
        if not rows:
            return None
        # packed contexts have one shape, which compiled models need
        width = self.ctx_len if self.pack else max(len(row.ids) for row in rows)
        batch = collate(rows, width, self._padding_id(), self.padding_side)
        self._check_embeddings(batch)
        return batch

    @checked()
    def take_rows(self, n: int) -> list[Row]:
        """Returns the next n contexts without padding; fewer at the end of the data."""
        if self._before is not None:  # an interrupt or an error ended the last call
            self.load_state_dict(self._before)
        self._before = self.state_dict()
        if not self._is_released:
            self.source.release(self._before["source"])
        rows = self._contexts.take(n)
        self._before = None
        return rows

    @checked()
    def batches(self, n: int) -> Iterator[TokenBatch]:
        """Yields the rest of the data, n contexts at a time."""
        while (batch := self.take(n)) is not None:
            yield batch

    @checked()
    def share(self, number: int, of: int) -> "TokenStream":
        """Returns the contexts of one of `of` shares of the documents (see `Source.share`)."""
        part = copy.copy(self)
        part.source = self.source.share(number, of)
        part._documents = EpochReader(part.source, self._documents.epochs, lambda: part.vocab_size)
        part._contexts, part._before, part._is_released = part._context_maker(self._rows), None, False
        return part

    def restart(self) -> None:
        """Returns to the first document."""
        self._documents.restart()
        self._contexts.clear()
        self._before = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the position, and the tokens that are in no context yet, as plain data."""
        if self._before is not None:
            return self._before
        return {**self._documents.state_dict(), "contexts": self._contexts.state_dict(), "rule": self._rule()}

    @checked(wraps=DataError)
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a position.

        Raises:
            ConfigError: The state belongs to a stream that makes other contexts.
        """
        if state["rule"] != self._rule():
            raise ConfigError(
                f"The state is of contexts made by {state['rule']}, and these are made by {self._rule()}. Use the "
                "same settings."
            )
        self._documents.load_state_dict(state)
        self._contexts.load_state_dict(state["contexts"])
        self._before = None

    @checked(wraps=DataError)
    def release(self, state: dict[str, Any]) -> None:
        """Says that no state before this one is loaded again (see `Source.release`).

        Without it, no state is before the last call of `take`.
        """
        self._is_released = True
        self.source.release(state["source"])

    def _rule(self) -> dict[str, Any]:
        return {"ctx_len": self.ctx_len, "as they are": isinstance(self._contexts, ReadyContexts), **self.packing}

    def _padding_id(self) -> int:
        if self.tokenizer is None:
            return 0
        padding = self.tokenizer.pad_token_id
        padding = padding if padding is not None else self.tokenizer.eos_token_id or 0
        # an added pad token may have no embedding; padding is masked, so any other id does
        return padding if self.n_embeddings is None or padding < self.n_embeddings else 0

    def _check_embeddings(self, batch: TokenBatch) -> None:
        if self.n_embeddings is None or int(batch.input_ids.max()) < self.n_embeddings:
            return
        row, column = (batch.input_ids >= self.n_embeddings).nonzero()[0].tolist()
        assert batch.document is not None and batch.position is not None
        document, position = int(batch.document[row, column]), int(batch.position[row, column])
        place = f"at place {position}" if position >= 0 else "as a special token"
        raise DataError(
            f"Document {document} of {self.source.name} has the token id {int(batch.input_ids[row, column])} {place}, "
            f"and the model has embeddings for the ids 0 to {self.n_embeddings - 1}. Use the tokenizer of this model, "
            "or resize the model's embeddings to the tokenizer."
        )

    def _context_maker(self, rows: str) -> PackedContexts | PaddedContexts | ReadyContexts:
        if self._are_contexts(rows):
            return ReadyContexts(self._documents, self.ctx_len, self.special.bos if self.special.at_context else None)
        if self.pack:
            return PackedContexts(self._documents, self.tokenizer, self.special, self.ctx_len)
        framing: Framing = "tokenizer" if self._bos_policy is None else "bos"
        if not self.add_special_tokens or self._bos_policy == "none":
            framing = "nothing"
        return PaddedContexts(self._documents, self.tokenizer, framing, self.ctx_len, self.long_documents)

    def _are_contexts(self, rows: str) -> bool:
        """Returns whether the rows of the source are the requested contexts."""
        known = self.source.tokenized
        if known is None or rows == "documents":
            return False
        if known.packing is None:
            # rows of unknown origin: if BOS is requested, it must not be left to them
            likely = self.pack and known.ctx_len == self.ctx_len and self._bos_policy in (None, "none")
            return rows == "contexts" or likely
        is_same = known.ctx_len == self.ctx_len and known.packing == self.packing
        if not is_same and (rows == "contexts" or not (self.pack and known.packing["pack"])):
            raise ConfigError(
                f"{self.source.name} holds contexts of {known.ctx_len} tokens, made by {known.packing}; asked for are "
                f"contexts of {self.ctx_len}, made by {self.packing}. Ask for the same, or use the text itself."
            )
        return is_same
