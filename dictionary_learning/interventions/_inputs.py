"""Texts as token ids."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from dictionary_learning._border import TEMPLATED, are_messages, short
from dictionary_learning._usual_state import usable
from dictionary_learning.data import TokenBatch
from dictionary_learning.errors import DataError, ModelError
from dictionary_learning.models import TracedModel

_NEEDED = "give a string, a list of strings, or token ids (ctx,) or (batch, ctx), from 0 on"


def as_tokens(model: TracedModel, inputs: Any, *, padding_side: str = "right") -> TokenBatch:
    """Returns the tokens of a text, or of several, or ids in any form.

    Ids are a tensor or a list (ctx,) or (batch, ctx), lists of several lengths, a `TokenBatch`, or
    what a tokenizer returns, with its mask. A text begins with BOS, if there is one, as contexts of
    training do; ids are taken as they are. Without it, the first word would be what attention rests
    on, with activations of another size. With `padding_side="left"`, batches that are padded on the
    right are padded on the left.

    Raises:
        DataError: There is no text, or it has no token; or ids or their mask are none.
    """
    if are_messages(inputs):
        raise DataError(f"Got chat messages as text: {short(inputs)}. Give {TEMPLATED}, return_dict=True).")
    if isinstance(inputs, (TokenBatch, Mapping)):
        given = _masked(model, inputs)
        return _on_the_left(given) if padding_side == "left" else given
    if isinstance(inputs, Tensor) or hasattr(inputs, "__array__"):
        ids = _as_ids(inputs)  # (ctx,) or (batch, ctx)
        ids = ids.unsqueeze(0) if ids.ndim == 1 else ids
        return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
    texts: Any = [inputs] if isinstance(inputs, str) else inputs
    if isinstance(texts, (bytes, bytearray)) or not isinstance(texts, Sequence) or not texts:
        raise DataError(f"Got {short(inputs)} as text; {_NEEDED}.")
    if not any(isinstance(text, str) for text in cast(Any, texts)):
        return _padded(model, _rows(texts), padding_side)
    if not all(isinstance(text, str) for text in cast(Any, texts)):
        raise DataError(f"Got {short(inputs)} as text; {_NEEDED}.")
    if model.tokenizer is None:
        raise ModelError(f"{model.name} has no tokenizer for text. Set load_model(..., tokenizer=), or give token ids.")
    for text in cast(Any, texts):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError(f"The text {text[:40]!r} has half of a UTF-16 surrogate pair. Remove or replace it.")
    found: list[list[int]] = [model.tokenizer(text)["input_ids"] for text in cast(Any, texts)]
    if not min(map(len, found)):
        empty: str = next(text for text, ids in zip(cast(Any, texts), found, strict=True) if not ids)
        raise DataError(f"The text {empty!r} has no token. Give texts that are not empty.")
    bos = getattr(model.tokenizer, "bos_token_id", None)
    if isinstance(bos, int):
        found = [one if one[0] == bos else [bos, *one] for one in found]
    return _padded(model, [torch.tensor(one) for one in found], padding_side)


def _padded(model: TracedModel, rows: Sequence[Int[Tensor, "_"]], padding_side: str) -> TokenBatch:
    longest, device = max(map(len, rows)), rows[0].device
    # any id will do for padding, which the mask hides
    pad = getattr(model.tokenizer, "pad_token_id", None) or 0
    ids = torch.full((len(rows), longest), pad, device=device)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool, device=device)
    for row, one in enumerate(rows):
        place = slice(longest - len(one), None) if padding_side == "left" else slice(len(one))
        ids[row, place], mask[row, place] = one.to(device), True
    return TokenBatch(ids, mask)


def _as_ids(given: Any) -> Int[Tensor, "..."]:
    """Returns ids (ctx,) or (batch, ctx), or raises DataError."""
    try:
        ids = given if isinstance(given, Tensor) else torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise DataError(f"Got {short(given)} as token ids; {_NEEDED}.") from None
    is_whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    # PyTorch compares no unsigned ones, which files of ids hold
    whole = ids.long() if is_whole else ids
    if ids.ndim not in (1, 2) or not is_whole or not ids.numel() or bool((whole < 0).any()):
        raise DataError(f"Got {short(given)} of {ids.dtype} as token ids; {_NEEDED}.")
    return usable(whole)


def _rows(given: Sequence[Any]) -> list[Int[Tensor, "_"]]:
    """Returns the ids of each row; of one row, if the ids are no lists of them."""
    if all(isinstance(one, int) or getattr(one, "shape", None) == () for one in given):
        return [_as_ids([one if isinstance(one, bool) else int(one) for one in given] if _are_whole(given) else given)]
    rows = [_as_ids(one) for one in given]
    if any(one.ndim != 1 for one in rows):
        raise DataError(f"Got {short(given)} as token ids; {_NEEDED}.")
    return rows


def _are_whole(given: Sequence[Any]) -> bool:
    """Returns whether numbers, some of which may be tensors, are integers."""
    return all(type(one.item() if hasattr(one, "item") else one) is int for one in given)


def _masked(model: TracedModel, given: TokenBatch | Mapping[Any, Any]) -> TokenBatch:
    """Returns ids with the mask that is given with them."""
    named: Mapping[Any, Any] = given._asdict() if isinstance(given, TokenBatch) else given
    ids, mask = named.get("input_ids"), named.get("attention_mask")
    if ids is None:
        raise DataError(
            f"Got a mapping with {short(list(named))} as text, and no input_ids. Give what a tokenizer returns."
        )
    if isinstance(ids, (list, tuple)) and ids:  # a tokenizer returns lists by default, of several lengths
        rows = _rows(cast(Any, ids))
        is_single = isinstance(cast(Any, ids)[0], int)
        given_masks = None if mask is None else [mask] if is_single else list(mask)
        masks = [torch.ones_like(row) for row in rows] if given_masks is None else list(map(_as_mask, given_masks))
        if len({len(row) for row in rows}) > 1 and [len(row) for row in rows] == [len(row) for row in masks]:
            kept = [row[one.bool()] for row, one in zip(rows, masks, strict=True)]
            if all(map(len, kept)):
                return _padded(model, kept, "right")
        ids, mask = (_stacked(each) for each in (rows, masks))
    ids = _as_ids(ids)
    mask = torch.ones_like(ids) if mask is None else _as_mask(mask)
    if mask.shape != ids.shape or not bool(((mask == 0) | (mask == 1)).all()) or not bool(mask.any(-1).all()):
        raise DataError(
            f"Got {short(mask)} as the mask of token ids {list(ids.shape)}; give 1 or True for tokens and 0 for "
            "padding, with a token in each row."
        )
    ids, mask = (one.unsqueeze(0) if one.ndim == 1 else one for one in (ids, mask))
    return TokenBatch(ids, usable(mask.bool()))


def _as_mask(given: Any) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"Got {short(given)} as the mask of token ids; give 1 or True for tokens, 0 for padding."
        ) from None


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    lengths = {len(one) for one in rows}
    if len(lengths) > 1:
        raise DataError(f"Got rows of {sorted(lengths)} tokens, or masks. Give as many of both in each row.")
    return torch.stack(list(rows))


def _on_the_left(batch: TokenBatch) -> TokenBatch:
    """Returns rows that are padded on the right with their padding on the left."""
    ids, mask = batch
    n_after = mask.long().flip(1).argmax(1)  # padding behind the last token
    if not bool(n_after.any()):
        return batch
    place = (torch.arange(ids.shape[1], device=ids.device) - n_after.unsqueeze(1)) % ids.shape[1]
    return TokenBatch(ids.gather(1, place), mask.gather(1, place))
