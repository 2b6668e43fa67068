"""Texts as token ids, and which tokens an intervention may touch."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dictionary_learning.data import TokenBatch
from dictionary_learning.errors import DataError, ModelError
from dictionary_learning.models import TracedModel


def as_tokens(model: TracedModel, inputs: Any, *, padding_side: str = "right") -> TokenBatch:
    """Returns the tokens of a text, of several, of ids (ctx,) or (batch, ctx), or a `TokenBatch`.

    A text begins with BOS, if there is one, as contexts of training do; ids are taken as they are.
    Without it, the first word would be what attention rests on, with activations of another size.

    Raises:
        DataError: There is no text, or it has no token.
    """
    if isinstance(inputs, TokenBatch):
        return TokenBatch(inputs.input_ids, inputs.attention_mask.bool())
    if isinstance(inputs, Tensor):
        if inputs.ndim not in (1, 2) or not _is_whole(inputs) or not inputs.numel():
            raise DataError(f"Got a tensor {tuple(inputs.shape)} of {inputs.dtype}; give token ids (batch, ctx).")
        ids = inputs.unsqueeze(0) if inputs.ndim == 1 else inputs
        return TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool))
    texts: Any = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(texts, Sequence) or not texts or not all(isinstance(text, str) for text in cast(Any, texts)):
        raise DataError(f"Got {inputs!r} as text; give a string, a list of strings, or token ids (batch, ctx).")
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
    longest = max(map(len, found))
    # any id will do for padding, which the mask hides
    pad = getattr(model.tokenizer, "pad_token_id", None) or 0
    ids, mask = torch.full((len(found), longest), pad), torch.zeros(len(found), longest, dtype=torch.bool)
    for row, one in enumerate(found):
        place = slice(longest - len(one), None) if padding_side == "left" else slice(len(one))
        ids[row, place], mask[row, place] = torch.tensor(one), True
    return TokenBatch(ids, mask)


def _is_whole(given: Tensor) -> bool:
    return not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)


def special_ids(model: TracedModel) -> tuple[int, ...]:
    """Returns the ids of BOS, EOS and padding, by the tokenizer or else the model's config."""
    known: Any = getattr(model.module, "config", None) if model.tokenizer is None else model.tokenizer
    found = [getattr(known, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
    several = [one for each in found for one in (cast(Any, each) if isinstance(each, (list, tuple)) else [each])]
    return tuple(one for one in several if isinstance(one, int))


def ordinary(
    ids: Int[Tensor, "batch ctx"], mask: Bool[Tensor, "batch ctx"], special: tuple[int, ...]
) -> Bool[Tensor, "batch ctx"]:
    """Returns which tokens are neither padding nor special."""
    return mask & ~torch.isin(ids, torch.tensor(special, dtype=ids.dtype, device=ids.device))
