"""Contexts of token ids from text.

Packed (the default), documents are joined and cut into full contexts: nothing is padded but the last context of the
data, and every token is in exactly one context. Where the tokenizer has a BOS token, each document and each context
begins with one; where it has none, its EOS token ends each document.

Padded, each document is one context, cut at its length and padded on the tokenizer's side.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dictionary_learning.data.source import TextSource
from dictionary_learning.errors import ConfigError, DataError

_DOCUMENTS_AT_ONCE = 8
"""Documents tokenized in one call: enough for the tokenizer's threads, few enough to start at once."""


class TokenBatch(NamedTuple):
    """Contexts as a model takes them."""

    input_ids: Int[Tensor, "batch ctx"]
    attention_mask: Bool[Tensor, "batch ctx"]
    """False on padding."""


class TokenStream:
    """Contexts of tokens, as many at a time as are asked for.

    Args:
        source: the documents.
        tokenizer: a Hugging Face tokenizer; it is not changed.
        ctx_len: tokens in a context, BOS included.
        pack: whether documents are joined and cut into full contexts, or padded one by one.
        add_special_tokens: whether BOS and EOS are put in as said above (packed) or as the tokenizer does (padded).

    Raises:
        DataError: there is no tokenizer.
        ConfigError: a context is too short to hold a token beside BOS.
    """

    def __init__(
        self, source: TextSource, tokenizer: Any, *, ctx_len: int, pack: bool = True, add_special_tokens: bool = True
    ):
        if tokenizer is None:
            raise DataError("The model has no tokenizer. Pass tokenizer= to load_model, with the model.")
        if ctx_len < 2:
            raise ConfigError(f"Got ctx_len={ctx_len}; a context needs at least 2 tokens.")
        self.source, self.tokenizer, self.ctx_len, self.pack = source, tokenizer, ctx_len, pack
        self.add_special_tokens = add_special_tokens
        self.bos = tokenizer.bos_token_id if add_special_tokens else None
        ends = add_special_tokens and self.bos is None
        self.separator = tokenizer.eos_token_id if ends else None
        """The token that ends each packed document, where no BOS begins it."""
        self._pending: list[int] = []  # tokens of documents that are not in a context yet

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Returns the ids that are put in by us or the tokenizer, and stand for no text: BOS, or the separator."""
        known = self.bos if self.bos is not None else self.separator
        if not self.pack and self.tokenizer.bos_token_id is not None:
            known = self.tokenizer.bos_token_id
        return () if known is None else (known,)

    def take(self, n: int) -> TokenBatch | None:
        """Returns the next n contexts, fewer where the data ends, and None after that."""
        rows = self._packed(n) if self.pack else self._padded(n)
        if not rows:
            return None
        width = self.ctx_len if self.pack else max(map(len, rows))
        padding = self.tokenizer.pad_token_id
        if padding is None:
            padding = self.tokenizer.eos_token_id or 0
        left = not self.pack and self.tokenizer.padding_side == "left"
        ids = torch.full((len(rows), width), padding, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            span = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, span] = torch.tensor(row, dtype=torch.long)
            mask[i, span] = True
        return TokenBatch(ids, mask)

    def batches(self, n: int) -> Iterator[TokenBatch]:
        """Iterates over the rest of the data, n contexts at a time."""
        while (batch := self.take(n)) is not None:
            yield batch

    def restart(self) -> None:
        """Begins again at the first document."""
        self.source.restart()
        self._pending = []

    def state_dict(self) -> dict[str, Any]:
        """Returns the position in the text, and the tokens read that no context holds yet."""
        return {"source": self.source.state_dict(), "pending": list(self._pending)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        self.source.load_state_dict(state["source"])
        self._pending = list(state["pending"])

    def _packed(self, n: int) -> list[list[int]]:
        rows: list[list[int]] = []
        start = 0
        for _ in range(n):
            if len(self._pending) - start < self.ctx_len:
                self._pending = self._pending[start:]
                start = 0
                self._read(self.ctx_len)
            if len(self._pending) == start:
                break
            first = [self.bos] if self.bos is not None and self._pending[start] != self.bos else []
            stop = start + self.ctx_len - len(first)
            rows.append(first + self._pending[start:stop])
            start = min(stop, len(self._pending))
        self._pending = self._pending[start:]
        return rows

    def _read(self, at_least: int) -> None:
        """Tokenizes documents until so many tokens are pending, or there are no more."""
        while len(self._pending) < at_least:
            documents = list(islice(self.source, _DOCUMENTS_AT_ONCE))
            if not documents:
                return
            for ids in self._tokenize(documents, special=False):
                if self.bos is not None:
                    self._pending.append(self.bos)
                self._pending.extend(ids)
                if self.separator is not None:
                    self._pending.append(self.separator)

    def _padded(self, n: int) -> list[list[int]]:
        rows: list[list[int]] = []
        while len(rows) < n:
            documents = list(islice(self.source, n - len(rows)))
            if not documents:
                break
            tokenized = self._tokenize(documents, special=self.add_special_tokens)
            rows += [ids[: self.ctx_len] for ids in tokenized if ids]
        return rows

    def _tokenize(self, documents: list[str], special: bool) -> list[list[int]]:
        # long documents are cut by us, so the tokenizer's warning that they are long says nothing
        return self.tokenizer(documents, add_special_tokens=special, verbose=False)["input_ids"]
