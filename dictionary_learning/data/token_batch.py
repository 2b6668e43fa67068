"""Contexts of token ids, as a model takes them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor


class _Inputs(NamedTuple):
    input_ids: Int[Tensor, "batch ctx"]
    attention_mask: Bool[Tensor, "batch ctx"]


class TokenBatch(_Inputs):
    """Contexts as a model takes them: `input_ids, attention_mask = batch`, and where their tokens come from.

    Args:
        input_ids: the token ids.
        attention_mask: False on padding.
        document: for each token the number of its document in the source, or -1 on padding; None where nothing is known.
        position: for each token its place among the tokens of its document, or -1 where it is of no text: padding, and the BOS tokens and
            separators that were put in; None where nothing is known.
    """

    def __new__(
        cls,
        input_ids: Int[Tensor, "batch ctx"],
        attention_mask: Bool[Tensor, "batch ctx"],
        document: Int[Tensor, "batch ctx"] | None = None,
        position: Int[Tensor, "batch ctx"] | None = None,
    ):
        """Makes a pair of ids and mask."""
        return super().__new__(cls, input_ids, attention_mask)

    def __init__(
        self,
        input_ids: Int[Tensor, "batch ctx"],
        attention_mask: Bool[Tensor, "batch ctx"],
        document: Int[Tensor, "batch ctx"] | None = None,
        position: Int[Tensor, "batch ctx"] | None = None,
    ):
        self.document, self.position = document, position

    @property
    def position_ids(self) -> Int[Tensor, "batch ctx"]:
        """Returns each token's place among the real tokens of its context, wherever the padding is; 0 on padding before them."""
        return (self.attention_mask.long().cumsum(-1) - 1).clamp_min(0)


class Run(NamedTuple):
    """Tokens that stand together in a context and in a document."""

    n: int
    """How many."""
    document: int
    """Which document's."""
    start: int
    """The place of the first in the document; -1 where they were put in."""


class Row(NamedTuple):
    """A context that is not padded yet."""

    ids: list[int]
    runs: list[Run]


def collate(rows: Sequence[Row], width: int, padding: int, side: str) -> TokenBatch:
    """Returns rows as a batch.

    Args:
        rows: the contexts, none longer than the width.
        width: tokens in a context.
        padding: the id that fills the others up.
        side: where it stands, "left" or "right".
    """
    ids = np.full((len(rows), width), padding, dtype=np.int64)
    document, position = np.full_like(ids, -1), np.full_like(ids, -1)
    mask = np.zeros(ids.shape, dtype=bool)
    for i, row in enumerate(rows):
        at = width - len(row.ids) if side == "left" else 0
        ids[i, at : at + len(row.ids)] = row.ids
        mask[i, at : at + len(row.ids)] = True
        for run in row.runs:
            document[i, at : at + run.n] = run.document
            if run.start >= 0:
                position[i, at : at + run.n] = np.arange(run.start, run.start + run.n)
            at += run.n
    return TokenBatch(*map(torch.from_numpy, (ids, mask, document, position)))
