"""A model that is edited while it is used in any way, also while it generates."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from torch import nn

from dictionary_learning._module_io import flat, hidden, input_or_none, unflat, with_hidden, with_input
from dictionary_learning._types import ModelLike
from dictionary_learning.errors import ConfigError, ModelError, SiteError
from dictionary_learning.interventions._calls import Call, When
from dictionary_learning.interventions._combine import check_edits, combine
from dictionary_learning.interventions._inputs import special_ids
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)

EditsLike: TypeAlias = Mapping[Any, Edit] | Sequence[Mapping[Any, Edit]]
"""Edits by site, pattern or string; or those of several dictionaries, which follow each other."""


@contextlib.contextmanager
def attached(
    model: ModelLike, edits: EditsLike, *, when: When = "always", special_tokens: bool = False
) -> Generator[Any, None, None]:
    """Edits a model inside a `with` block, however it is called: forward, `generate`, a pipeline.

    Special tokens and padding stay as they are. While the model generates with a cache, each call
    has the new tokens only, and the edits see these. What was edited and changed nothing is warned
    of, once, when the block ends.

    Args:
        model: A Hugging Face model, or what `load_model` takes.
        edits: Functions by site, pattern or string, as for `TracedModel.run`, or several mappings
            of these. An edit that was made with a mask of tokens fits one shape of inputs only.
        when: "prompt" edits calls without a cache of earlier tokens, "generated" those with one.
        special_tokens: Whether BOS, EOS and padding ids change too.

    Yields:
        The Hugging Face model.

    Raises:
        ConfigError: `when` is unknown.
        SiteError: A site is not in the model, was edited twice, or an edit returns another shape.
    """
    with attached_for(load_model(model), edits, when, special_tokens) as root:
        yield root


@contextlib.contextmanager
def attached_for(
    traced: TracedModel, edits: EditsLike, when: When, special_tokens: bool, n_prompt: int | None = None
) -> Generator[Any, None, None]:
    """Edits a model inside a `with` block; with `n_prompt` the first so many tokens are prompt."""
    if when not in ("always", "prompt", "generated"):
        raise ConfigError(f"Got when={when!r}; give 'always', 'prompt' or 'generated'.")
    root: nn.Module = traced._original
    places = _edits_by_site(traced, edits)
    with contextlib.suppress(ModelError):  # without an example it cannot be tried
        traced.check_is_read(list(places))
    call = Call(root, () if special_tokens else special_ids(traced), when, n_prompt)
    with contextlib.ExitStack() as stack:
        stack.callback(root.register_forward_pre_hook(call.begin, with_kwargs=True).remove)
        for site, edit in places.items():
            stack.callback(_register(root.get_submodule(site.path), site, edit, call, traced).remove)
        yield root
    idle = [str(site) for site in places if not call.had_effect(site)]
    if call.n_calls and idle:
        logger.warning(
            "The edits at %s changed no activation, so no logit either. Check the latents, the mask of tokens, and "
            "when=%r; BOS, EOS and padding stay as they are unless special_tokens=True.",
            *(", ".join(idle), when),
        )


def _edits_by_site(model: TracedModel, edits: EditsLike) -> dict[Site, Edit]:
    several: Any = edits if isinstance(edits, (list, tuple)) else [edits]
    resolved: list[dict[Site, Edit]] = []
    for each in several:
        check_edits(each)
        found: dict[Site, Edit] = {}
        for given, edit in each.items():
            for site in model.sites(given):
                if site in found:
                    raise SiteError(f"Site '{site}' is edited twice; combine the edits in one function.")
                found[site] = edit
        resolved.append(found)
    return combine(*resolved)


def _register(module: nn.Module, site: Site, edit: Edit, call: Call, model: TracedModel) -> Any:
    channels = model.channels
    is_meant = _calls_of(site, call)

    def output(module: nn.Module, args: Any, kwargs: Any, value: Any) -> Any:
        if not is_meant():
            return None
        old = hidden(value, site.index)
        new = call.edited(edit, flat(old, channels), site)
        return None if new is None else with_hidden(value, unflat(new, old, channels), site.index)

    def inputs(module: nn.Module, args: Any, kwargs: Any) -> Any:
        old = input_or_none(module, args, kwargs, site.index) if is_meant() else None
        if old is None:
            return None
        new = call.edited(edit, flat(old, channels), site)
        return None if new is None else with_input(module, args, kwargs, unflat(new, old, channels), site.index)

    if site.side == "out":
        return module.register_forward_hook(cast(Any, output), with_kwargs=True)
    return module.register_forward_pre_hook(cast(Any, inputs), with_kwargs=True)


def _calls_of(site: Site, call: Call) -> Callable[[], bool]:
    """Returns a function that counts a module's calls, and tells whether this one is meant."""
    seen, number = -1, itertools.count()

    def is_meant() -> bool:
        nonlocal seen, number
        if seen != call.n_calls:  # the model was called again
            seen, number = call.n_calls, itertools.count()
        return next(number) == site.call or site.call is None if call.is_edited else False

    return is_meant
