"""A model that is edited while it is used in any way, also while it generates."""

import contextlib
import inspect
from collections.abc import Generator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dictionary_learning._module_io import apply_edit, flat, hidden, input_or_none, unflat, with_hidden, with_input
from dictionary_learning._types import ModelLike
from dictionary_learning.errors import ConfigError, SiteError
from dictionary_learning.interventions._inputs import ordinary, special_ids
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.sites import Site

When = Literal["always", "prompt", "generated"]


@contextlib.contextmanager
def attached(
    model: ModelLike, edits: Mapping[Any, Edit], *, when: When = "always", special_tokens: bool = False
) -> Generator[Any, None, None]:
    """Edits a model inside a `with` block, however it is called: forward, `generate`, a pipeline.

    Special tokens and padding stay as they are. While the model generates with a cache, each call
    has the new tokens only, and the edits see these.

    Args:
        model: A Hugging Face model, or what `load_model` takes.
        edits: Functions by site, pattern or string, as for `TracedModel.run`. An edit that was made
            with a mask of tokens fits one shape of inputs only.
        when: "prompt" edits calls without a cache of earlier tokens, "generated" those with one.
        special_tokens: Whether BOS, EOS and padding ids change too.

    Yields:
        The Hugging Face model.

    Raises:
        ConfigError: `when` is unknown.
        SiteError: A site is not in the model, was edited twice, or an edit returns another shape.
    """
    if when not in ("always", "prompt", "generated"):
        raise ConfigError(f"Got when={when!r}; give 'always', 'prompt' or 'generated'.")
    traced = load_model(model)
    root: nn.Module = traced._original
    places: dict[Site, Edit] = {}
    for given, edit in edits.items():
        for site in traced.sites(given):
            if site in places:
                raise SiteError(f"Site '{site}' is edited twice; combine the edits in one function.")
            places[site] = edit
    call = _Call(root, () if special_tokens else special_ids(traced), when)
    with contextlib.ExitStack() as stack:
        stack.callback(root.register_forward_pre_hook(call.begin, with_kwargs=True).remove)
        for site, edit in places.items():
            stack.callback(_register(root.get_submodule(site.path), site, edit, call, traced).remove)
        yield root


class _Call:
    """What is known about the present call of the model."""

    def __init__(self, root: nn.Module, special: tuple[int, ...], when: When):
        self._names = list(inspect.signature(type(root).forward).parameters)[1:]
        self._special, self._when = special, when
        self.is_edited = False
        self._mask: Tensor | None = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes the tokens of a call, and whether it is edited."""
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        # `past_key_values`, `cache` or `cache_params`, by the version and the model
        n_before = max((int(c.get_seq_length()) for c in given.values() if hasattr(c, "get_seq_length")), default=0)
        self.is_edited = self._when == "always" or (self._when == "generated") == (n_before > 0)
        ids = given.get("input_ids")
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            self._mask = None
            return
        real = torch.ones_like(ids, dtype=torch.bool)
        mask = given.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            real = mask[:, -ids.shape[1] :].bool()  # a cache's tokens come first
        self._mask = ordinary(ids, real, self._special)

    def edited(self, edit: Edit, x: Tensor, site: Site) -> Tensor | None:
        """Returns activations (batch, ctx, dim) with the edit at the tokens that may change."""
        new = apply_edit(edit, x.clone(), site)
        if new is None or self._mask is None or self._mask.shape != x.shape[:2]:
            return new
        return torch.where(self._mask.to(x.device).unsqueeze(-1), new.to(x.dtype), x)


def _register(module: nn.Module, site: Site, edit: Edit, call: _Call, model: TracedModel) -> Any:
    channels = model.channels

    def output(module: nn.Module, args: Any, kwargs: Any, value: Any) -> Any:
        if not call.is_edited:
            return None
        old = hidden(value, site.index)
        new = call.edited(edit, flat(old, channels), site)
        return None if new is None else with_hidden(value, unflat(new, old, channels), site.index)

    def inputs(module: nn.Module, args: Any, kwargs: Any) -> Any:
        old = input_or_none(module, args, kwargs, site.index) if call.is_edited else None
        if old is None:
            return None
        new = call.edited(edit, flat(old, channels), site)
        return None if new is None else with_input(module, args, kwargs, unflat(new, old, channels), site.index)

    if site.side == "out":
        return module.register_forward_hook(cast(Any, output), with_kwargs=True)
    return module.register_forward_pre_hook(cast(Any, inputs), with_kwargs=True)
