"""Selects positions of a context."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dictionary_learning.errors import ConfigError


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
    start, stop = (  # each (batch,)
        torch.tensor([chosen.indices(n)[i] for n in attention_mask.sum(-1).tolist()], device=position.device)
        for i in (0, 1)
    )
    inside = (position >= start[:, None]) & (position < stop[:, None])
    return attention_mask & inside & ((position - start[:, None]) % (chosen.step or 1) == 0)


def as_slice(seqpos_slice: Sequence[int | None] | None) -> slice:
    """Converts numbers to a slice.

    Raises:
        ConfigError: There are none or too many, or the step is not positive.
    """
    if seqpos_slice is None:
        return slice(None)
    numbers = tuple(seqpos_slice)
    if not 1 <= len(numbers) <= 3:
        raise ConfigError(f"Got seqpos_slice={numbers}; it is (stop,), (start, stop) or (start, stop, step).")
    chosen = slice(*numbers)
    if chosen.step is not None and chosen.step < 1:
        raise ConfigError(f"Got seqpos_slice={numbers}; its step must be at least 1.")
    return chosen
