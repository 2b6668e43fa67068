"""Contexts of token ids, as a model reads them, and the positions of a context that count."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dictionary_learning._brief import brief
from dictionary_learning.errors import ConfigError, DataError


class _Inputs(NamedTuple):
    input_ids: Int[Tensor, "batch ctx"]
    attention_mask: Bool[Tensor, "batch ctx"]


class TokenBatch(_Inputs):
    """A batch of contexts: `input_ids, attention_mask = batch`, and the origin of each token.

    Args:
        input_ids: The token ids.
        attention_mask: False on padding; the integer masks of tokenizers are converted.
        document: The number of each token's document in the source, -1 on padding; None if unknown.
        position: The position of each token in its document, -1 on padding, BOS and separators that
            were inserted; None if unknown.

    Raises:
        DataError: The mask has another shape than the ids.
    """

    document: Int[Tensor, "batch ctx"] | None
    position: Int[Tensor, "batch ctx"] | None

    # a tuple of two, so that it unpacks into what models read; the rest are attributes
    def __new__(
        cls,
        input_ids: Int[Tensor, "batch ctx"],
        attention_mask: Bool[Tensor, "batch ctx"] | Int[Tensor, "batch ctx"],
        document: Int[Tensor, "batch ctx"] | None = None,
        position: Int[Tensor, "batch ctx"] | None = None,
    ):
        if input_ids.shape != attention_mask.shape:
            raise DataError(
                f"Got token ids of shape {tuple(input_ids.shape)} with an attention mask of shape "
                f"{tuple(attention_mask.shape)}; both must be (batch, ctx)."
            )
        # an integer mask would index positions 0 and 1 instead of selecting tokens
        batch = super().__new__(cls, input_ids, attention_mask.bool())
        batch.document, batch.position = document, position
        return batch

    __repr__ = brief

    def __getitem__(self, key: Any) -> Any:
        """Returns a part by its place, or by its name, such as "input_ids"."""
        return (
            getattr(self, key) if isinstance(key, str) and key in self.keys() else super().__getitem__(cast(Any, key))
        )

    def keys(self) -> tuple[str, str]:
        """Returns the names of what models read, so that `model(**batch)` works."""
        return ("input_ids", "attention_mask")

    @property
    def position_ids(self) -> Int[Tensor, "batch ctx"]:
        """Each token's place among the real tokens of its context; 0 on padding before them."""
        return (self.attention_mask.long().cumsum(-1) - 1).clamp_min(0)


class Run(NamedTuple):
    """Consecutive tokens of one document in a context."""

    n: int  # tokens
    document: int  # its number in the source
    start: int  # the position of the first token in the document; -1 if the tokens were inserted


class Row(NamedTuple):
    """A context without padding."""

    ids: list[int]
    runs: list[Run]


def collate(rows: Sequence[Row], width: int, padding: int, side: str) -> TokenBatch:
    """Pads rows to a width with the id `padding`, on the "left" or "right" side."""
    ids = np.full((len(rows), width), padding, dtype=np.int64)  # (batch, ctx), as are all below
    document, position = np.full_like(ids, -1), np.full_like(ids, -1)
    mask = np.zeros(ids.shape, dtype=bool)
    for i, row in enumerate(rows):
        at = width - len(row.ids) if side == "left" else 0  # column of the first token
        ids[i, at : at + len(row.ids)] = row.ids
        mask[i, at : at + len(row.ids)] = True
        for run in row.runs:
            document[i, at : at + run.n] = run.document
            if run.start >= 0:
                position[i, at : at + run.n] = np.arange(run.start, run.start + run.n)
            at += run.n
    return TokenBatch(*map(torch.from_numpy, (ids, mask, document, position)))


def position_mask(ctx: int, seqpos_slice: Sequence[int | None] | None) -> Bool[Tensor, "ctx"]:
    """Returns which positions of a full context a slice selects.

    Args:
        ctx: Tokens in the context.
        seqpos_slice: (stop,), (start, stop) or (start, stop, step), as for `slice`; None for all.

    Raises:
        ConfigError: This is no slice, or it selects nothing.
    """
    mask = real_position_mask(torch.ones(1, ctx, dtype=torch.bool), seqpos_slice)[0]
    if not mask.any():
        raise ConfigError(f"seqpos_slice={seqpos_slice} takes no position of a context of {ctx} tokens. Widen it.")
    return mask


def real_position_mask(
    attention_mask: Bool[Tensor, "batch ctx"] | Int[Tensor, "batch ctx"], seqpos_slice: Sequence[int | None] | None
) -> Bool[Tensor, "batch ctx"]:
    """Returns which tokens a slice selects, counted over the real tokens of each context.

    Padding on either side shifts nothing. Nothing may be selected in a short context.

    Args:
        attention_mask: False on padding.
        seqpos_slice: As in `position_mask`; negative numbers count from the last real token.

    Raises:
        ConfigError: This is no slice.
    """
    chosen, attention_mask = as_slice(seqpos_slice), attention_mask.bool()
    position = attention_mask.cumsum(-1) - 1  # (batch, ctx)
    ends = [chosen.indices(n)[:2] for n in attention_mask.sum(-1).tolist()]  # in each context
    # each (batch, 1)
    start, stop = torch.tensor(ends, dtype=torch.long, device=position.device).reshape(-1, 2, 1).unbind(1)
    inside = (position >= start) & (position < stop)
    return attention_mask & inside & ((position - start) % (chosen.step or 1) == 0)


def as_slice(seqpos_slice: Sequence[int | None] | None) -> slice:
    """Converts the numbers of a slice; the step must be positive."""
    if seqpos_slice is None:
        return slice(None)
    numbers = tuple(seqpos_slice)
    if not 1 <= len(numbers) <= 3:
        raise ConfigError(f"Got seqpos_slice={numbers}; it is (stop,), (start, stop) or (start, stop, step).")
    chosen = slice(*numbers)
    if chosen.step is not None and chosen.step < 1:
        raise ConfigError(f"Got seqpos_slice={numbers}; its step must be at least 1.")
    return chosen
