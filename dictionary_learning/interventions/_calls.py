"""What an edit must know of the present call of a model: its tokens, and which are generated."""

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import apply_edit
from dictionary_learning.errors import ConfigError
from dictionary_learning.interventions._combine import reads_contexts
from dictionary_learning.interventions._inputs import ordinary
from dictionary_learning.models import Edit
from dictionary_learning.sites import Site

When = Literal["always", "prompt", "generated"]


class Call:
    """The present call of a model, and which edits had an effect in all calls so far.

    Args:
        root: The model.
        special: Ids of tokens that stay as they are.
        when: Which tokens change.
        n_prompt: The length of the prompt; None if it is what is read without a cache.
    """

    def __init__(self, root: nn.Module, special: tuple[int, ...], when: When, n_prompt: int | None = None):
        self._names = list(inspect.signature(type(root).forward).parameters)[1:]
        self._special, self._when, self._n_prompt = special, when, n_prompt
        self.n_calls = 0
        self.is_edited = False
        self._n_before = 0
        self._counted: tuple[Any, int] = (None, 0)  # a cache without a length, and how many tokens it has read
        self._mask: Tensor | None = None  # (batch, ctx)
        self._effects: dict[Site, Tensor | bool] = {}

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes the tokens of a call, and whether it is edited."""
        self.n_calls += 1
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        # `past_key_values`, `cache` or `cache_params`, by the version and the model
        cache = next((value for value in given.values() if hasattr(value, "get_seq_length")), None)
        n_before = self._n_before = self._length_of(cache, ids.shape[1] if isinstance(ids, Tensor) else 1)
        self.is_edited = self._when == "always" or (self._when == "generated") == (n_before > 0)
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            self._mask = None
            return
        real = torch.ones_like(ids, dtype=torch.bool)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask[:, -ids.shape[1] :].bool()  # a cache's tokens come first
        self._mask = ordinary(ids, real, self._special)
        if self._n_prompt is not None and self._when != "always":
            # without a cache each call reads the prompt again
            place = n_before + torch.arange(ids.shape[1], device=ids.device)  # (ctx,)
            self.is_edited = True
            self._mask &= (place < self._n_prompt) == (self._when == "prompt")

    def _length_of(self, cache: Any, n_new: int) -> int:
        """Returns the number of tokens in a cache, to which a call adds some."""
        if cache is None:
            return 0
        try:
            return int(cache.get_seq_length())
        except ValueError:  # states of recurrent layers, as Mamba's, have no length
            known, n_before = self._counted
            n_before = n_before if known is cache else int(cache.has_previous_state())
            self._counted = cache, n_before + n_new
            return n_before

    def edited(self, edit: Edit, x: Tensor, site: Site) -> Tensor | None:
        """Returns activations (batch, ctx, dim) with the edit at the tokens that may change."""
        if self._n_before and reads_contexts(edit):
            raise ConfigError(
                f"The dictionary at '{site}' reads the tokens before each, which a call with a cache does not have. "
                "Generate with use_cache=False."
            )
        new = apply_edit(edit, x.clone(), site)
        if new is None:
            self._effects.setdefault(site, True)  # it only reads
            return None
        if self._mask is not None and self._mask.shape == x.shape[:2]:
            new = torch.where(self._mask.to(x.device).unsqueeze(-1), new.to(x.dtype), x)
        before = self._effects.get(site, False)
        if before is not True:
            # on the device: the host does not wait for it
            is_changed = (new != x).any()
            self._effects[site] = (is_changed | before) if x.device.type != "cpu" else bool(is_changed) or before
        return new

    def had_effect(self, site: Site) -> bool:
        """Returns whether an edit changed an activation, or only reads."""
        return bool(self._effects.get(site, False))
