"""What an edit must know of the present call of a model: its tokens, and which are generated.

A model is a tree of modules of which some read a text: the model itself, its base model, an
encoder, a decoder. Each of their calls notes its tokens while it runs, and an edit sees those of
the innermost one. So an edit in a decoder sees the decoder's tokens, and it does not matter which
of these modules is called, or what was called before.
"""

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import apply_edit
from dictionary_learning.capture._ordinary import encoder_of
from dictionary_learning.errors import ConfigError
from dictionary_learning.interventions._combine import reads_contexts
from dictionary_learning.interventions._tokens import (
    CallTokens,
    Given,
    When,
    given_to,
    has_decoder,
    may_change,
    prompt_of,
)
from dictionary_learning.models import Edit
from dictionary_learning.sites import Site

_UNKNOWN = CallTokens()


class Call:
    """The present call of a model, and which edits had an effect in all calls so far.

    Args:
        root: The model.
        special: Ids of tokens that stay as they are.
        when: Which tokens change.
    """

    def __init__(self, root: nn.Module, special: tuple[int, ...], when: When):
        self._special = special
        self._when: When = when
        self.n_calls = 0
        """Calls of the model, or of a part of it from outside."""
        self._open: list[tuple[nn.Module, CallTokens]] = []
        self._last = _UNKNOWN
        self._encoder = encoder_of(root)
        self._n_prompt: int | None = None
        self._is_generating = False
        self._counted: tuple[Any, int] = (None, 0)  # a cache without a length, and how many tokens it has read
        self._effects: dict[Site, Tensor | bool] = {}

    @property
    def tokens(self) -> CallTokens:
        """The tokens of the present call; unknown ones for a module that is called on its own."""
        if self._open:
            return self._open[-1][1]
        # gradient checkpointing calls layers again, on their own, while gradients are computed
        return self._last if torch._C._current_graph_task_id() != -1 else _UNKNOWN

    @property
    def is_open(self) -> bool:
        """Whether a module that reads a text is being called."""
        return bool(self._open)

    @property
    def is_edited(self) -> bool:
        """Whether some tokens of the present call are of the kind that changes."""
        return self.tokens.has(self._when)

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes the tokens of a call of a module that reads a text."""
        self.n_calls += not self._open
        given = given_to(module, args, kwargs)
        around = self._open[-1] if self._open else None
        # what an encoder or a decoder reads is not what its model reads
        same = None if around is None or has_decoder(around[0], {}) else around[1]
        mask, n_new = may_change(given, self._special, same), given.shape[1] if given.shape else 1
        n_before = self._length_of(given, around and around[1])
        n_prompt = self._prompt_in(module, n_before, n_new, is_text=given.shape is not None)
        self._open.append((module, CallTokens(mask, n_before, n_new, n_prompt, given.n_last, given.cache)))

    def end(self, module: nn.Module, *_: Any) -> None:
        """Forgets the tokens of a call, also after an error."""
        if self._open and self._open[-1][0] is module:
            self._last = self._open.pop()[1]._replace(cache=None)

    @contextlib.contextmanager
    def generating(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generator[None]:
        """Notes the prompt of a model's `generate` while it runs."""
        if self._is_generating:  # by another `generate` around this
            yield
            return
        self._is_generating, self._n_prompt, self._counted = True, prompt_of(module, args, kwargs), (None, 0)
        try:
            yield
        finally:
            self._is_generating, self._n_prompt = False, None

    def _prompt_in(self, module: nn.Module, n_before: int, n_new: int, is_text: bool) -> int:
        """Returns how many of the new tokens are prompt."""
        if module in self._encoder:
            return n_new
        if not self._is_generating:
            return 0 if n_before else n_new
        if self._n_prompt is None and is_text:
            self._n_prompt = n_before + n_new
        return n_new if self._n_prompt is None else min(max(self._n_prompt - n_before, 0), n_new)

    def _length_of(self, given: Given, around: CallTokens | None) -> int:
        """Returns the number of tokens in a cache, to which a call adds some."""
        cache, n_new = given.cache, given.shape[1] if given.shape else 1
        if cache is None:
            return 0
        if around is not None and around.cache is cache:
            return around.n_before
        try:
            return int(cache.get_seq_length())
        except ValueError:  # states of recurrent layers, as Mamba's, have no length
            known, n_before = self._counted
            if known is not cache:  # how many it has read is unknown; transformers reads a prompt again
                n_before = 0 if self._is_generating else int(cache.has_previous_state())
            self._counted = cache, n_before + n_new
            return n_before

    def edited(self, edit: Edit, x: Tensor, site: Site) -> Tensor | None:
        """Returns activations (batch, ctx, dim) with the edit at the tokens that may change."""
        tokens = self.tokens
        if tokens.n_before and reads_contexts(edit):
            raise ConfigError(
                f"The dictionary at '{site}' reads the tokens before each, which a call with a cache does not have. "
                "Generate with use_cache=False."
            )
        mask = tokens.chosen(x, self._when, site)
        new = apply_edit(edit, x.clone(), site)
        if new is None:
            self._effects.setdefault(site, True)  # it only reads
            return None
        if mask is not None:
            new = torch.where(mask.to(x.device).unsqueeze(-1), new.to(x.dtype), x)
        before = self._effects.get(site, False)
        if before is not True:
            # on the device: the host does not wait for it
            is_changed = (new != x).any()
            self._effects[site] = (is_changed | before) if x.device.type != "cpu" else bool(is_changed) or before
        return new

    def had_effect(self, site: Site) -> bool:
        """Returns whether an edit changed an activation, or only reads."""
        return bool(self._effects.get(site, False))
