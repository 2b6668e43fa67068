"""The tokens of a module's call: which may change, and which are of the prompt."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from dictionary_learning.capture._ordinary import ordinary, real_of
from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Site

When = Literal["always", "prompt", "generated"]


class CallTokens(NamedTuple):
    """The tokens that a module's call is given; by default unknown ones, which are prompt."""

    mask: Bool[Tensor, "batch ctx"] | None = None
    """Those that may change: neither padding nor special. None if there are no tokens."""
    n_before: int = 0
    """Tokens in the cache."""
    n_new: int = 1
    n_prompt: int = 1
    """How many of the new ones, the first, are prompt."""
    n_last: int = 0
    """The last tokens, for which alone the model computes logits; 0 for all."""
    cache: Any = None

    def has(self, when: When) -> bool:
        """Returns whether some tokens are of the kind that changes."""
        return when == "always" or (self.n_prompt > 0 if when == "prompt" else self.n_prompt < self.n_new)

    def chosen(self, x: Tensor, when: When, site: Site) -> Bool[Tensor, "batch ctx"] | None:
        """Returns which of the activations (batch, ctx, dim) change; None for all.

        Raises:
            SiteError: Only some tokens change, and the activations are not one for each token.
        """
        mask, is_mixed = self.mask, when != "always" and 0 < self.n_prompt < self.n_new
        if mask is None:
            return None
        if is_mixed:
            place = torch.arange(self.n_new, device=mask.device)
            mask = mask & ((place < self.n_prompt) == (when == "prompt"))
        if 0 < self.n_last == x.shape[1]:
            mask = mask[:, -self.n_last :]
        if mask.shape == x.shape[:2]:
            return mask
        if is_mixed:
            raise SiteError(
                f"The activations at '{site}' are {tuple(x.shape)}, not one for each of the {tuple(mask.shape)} "
                f"tokens, so that those of when={when!r} are not known. Use when='always', or generate with a cache."
            )
        return None

    def ctx_len(self, x: Tensor) -> int | None:
        """Returns the length of contexts, where activations are one for each token, in one row."""
        if self.mask is None:
            return None
        batch, ctx = self.mask.shape
        return ctx if x.ndim == 4 or len(x) == batch * ctx else None


class Given(NamedTuple):
    """What a module's call is given as text: token ids or their embeddings, and a mask."""

    ids: Tensor | None
    shape: tuple[int, int] | None
    """(batch, ctx) of the new tokens; None if there are none."""
    mask: Bool[Tensor, "batch ctx"] | None
    """Which of the new tokens are no padding, if a mask says so."""
    cache: Any
    n_last: int

    def real(self) -> Tensor:
        """Returns which tokens (batch, ctx) are no padding."""
        assert self.shape is not None, "there are tokens"
        device = None if self.ids is None else self.ids.device
        return torch.ones(self.shape, dtype=torch.bool, device=device) if self.mask is None else self.mask


def reads_tokens(module: nn.Module) -> bool:
    """Returns whether a module is a model, or a part with inputs of its own, as an encoder."""
    return hasattr(type(module), "main_input_name")  # of transformers' base models; it may be no text


def has_decoder(module: nn.Module, kwargs: Mapping[str, Any]) -> bool:
    """Returns whether a module reads one text by an encoder, and another by a decoder."""
    return "decoder_input_ids" in names_of(module) or "decoder_input_ids" in kwargs


def given_to(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Given:
    """Returns the text of a module's call: that of the decoder, if it has both."""
    given: dict[str, Any] = {**dict(zip(names_of(module), args, strict=False)), **kwargs}
    prefix = "decoder_" if has_decoder(module, kwargs) else ""
    ids, x, mask = (given.get(prefix + name) for name in ("input_ids", "inputs_embeds", "attention_mask"))
    ids = ids if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point() else None
    text: Any = ids if ids is not None else x if isinstance(x, Tensor) and x.ndim == 3 else None
    shape = None if text is None else (int(text.shape[0]), int(text.shape[1]))
    # `past_key_values`, `cache` or `cache_params`, by the version and the model
    cache = next((value for value in given.values() if hasattr(value, "get_seq_length")), None)
    real = None if shape is None else real_of(mask, *shape, n_before=_length_of(cache))
    kept = given.get("logits_to_keep")
    return Given(ids, shape, real, cache, kept if type(kept) is int else 0)


def _length_of(cache: Any) -> int:
    """Returns the number of tokens in a cache; 0 without a length, as of recurrent layers."""
    try:
        return 0 if cache is None else int(cache.get_seq_length())
    except ValueError:
        return 0


def may_change(given: Given, special: tuple[int, ...], around: CallTokens | None) -> Tensor | None:
    """Returns the tokens (batch, ctx) that are neither padding nor special.

    `around` is the call that made this one of the same text: a model that passes embeddings on to
    its base model still knows the ids.
    """
    if given.shape is None:
        return None
    mask = given.real()
    if given.ids is not None:
        mask = ordinary(given.ids, mask.to(given.ids.device), special)
    known = None if around is None else around.mask
    if known is not None and known.shape == mask.shape and (given.ids is None or given.mask is None):
        mask = mask & known.to(mask.device)
    return mask


def prompt_of(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Returns the length of the prompt of a `generate`; None if its first call is to tell."""
    if has_decoder(module, kwargs):
        return None  # `generate` begins the decoder's text
    text = kwargs.get("inputs_embeds")
    for other in (*args[:1], kwargs.get("inputs"), kwargs.get("input_ids")):
        text = other if text is None else text
    if not isinstance(text, Tensor) or text.ndim < 2:
        return None
    mask = kwargs.get("attention_mask")  # with a cache, the ids may be the new ones alone, and the mask has all
    return max(int(text.shape[1]), int(mask.shape[1]) if isinstance(mask, Tensor) and mask.ndim == 2 else 0)


def names_of(module: nn.Module) -> list[str]:
    """Returns the names of a module's arguments, in order."""
    return list(inspect.signature(type(module).forward).parameters)[1:]
