"""A model that is edited while it is used in any way, also while it generates."""

import contextlib
import functools
import itertools
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias, cast

from torch import nn

from dictionary_learning._border import checked
from dictionary_learning._module_io import flat, hidden, input_or_none, unflat, with_hidden, with_input
from dictionary_learning._types import ModelLike
from dictionary_learning.capture._ordinary import special_ids
from dictionary_learning.errors import ModelError, SiteError
from dictionary_learning.interventions._calls import Call
from dictionary_learning.interventions._combine import check_edits, combine
from dictionary_learning.interventions._tokens import When, reads_tokens
from dictionary_learning.models import Edit, TracedModel, load_model
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)

EditsLike: TypeAlias = Mapping[Any, Edit] | Sequence[Mapping[Any, Edit]]
"""Edits by site, pattern or string; or those of several dictionaries, which follow each other."""


@checked()
@contextlib.contextmanager
def attached(
    model: ModelLike, edits: EditsLike, *, when: When = "always", special_tokens: bool = False
) -> Generator[Any, None, None]:
    """Edits a model inside a `with` block, however it is called: forward, `generate`, a pipeline.

    It may also be a part of the model that is called, as its base model. Special tokens and padding
    stay as they are: by the ids and attention mask that the model, or the encoder or decoder around
    the site, is called with. Given `inputs_embeds`, ids are unknown, and padding alone stays. A
    layer that is called on its own changes everywhere. What was edited and changed nothing is
    warned of, once, when the block ends.

    Args:
        model: A Hugging Face model, or what `load_model` takes.
        edits: Functions by site, pattern or string, as for `TracedModel.run`, or several mappings
            of these. An edit that was made with a mask of tokens fits one shape of inputs only.
        when: While the model's `generate` runs, "prompt" edits the tokens that it was given, with
            those of an encoder, and "generated" those that it made, by their positions. In any
            other call, as in a loop of one's own, tokens that follow a cache count as generated,
            and all others as prompt.
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
def attached_for(traced: TracedModel, edits: EditsLike, when: When, special_tokens: bool) -> Generator[Any, None, None]:
    """Edits a model inside a `with` block."""
    root: nn.Module = traced._original
    places = _edits_by_site(traced, edits)
    with contextlib.suppress(ModelError):  # without an example it cannot be tried
        traced.check_is_read(list(places))
    call = Call(root, () if special_tokens else special_ids(traced), when)
    readers = [module for module in root.modules() if module is root or reads_tokens(module)]
    with contextlib.ExitStack() as stack:
        for module in readers:
            begin = module.register_forward_pre_hook(call.begin, with_kwargs=True, prepend=True)
            stack.callback(begin.remove)
        for site, edit in places.items():
            stack.callback(_register(root.get_submodule(site.path), site, edit, call, traced).remove)
        for module in readers:  # after the edits of what they return
            stack.callback(module.register_forward_hook(call.end, always_call=True).remove)
        for module in root.modules():
            if callable(getattr(module, "generate", None)):
                stack.callback(_noting_prompts(module, call))
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


def _noting_prompts(module: Any, call: Call) -> Callable[[], None]:
    """Lets a call know the prompts that a model generates from; returns what undoes it."""
    generate, own = module.generate, module.__dict__.get("generate")

    @functools.wraps(generate)
    def noting(*args: Any, **kwargs: Any) -> Any:
        with call.generating(module, args, kwargs):
            return generate(*args, **kwargs)

    def undo() -> None:
        if own is None:
            module.__dict__.pop("generate", None)
        else:
            module.__dict__["generate"] = own

    module.__dict__["generate"] = noting
    return undo


def _register(module: nn.Module, site: Site, edit: Edit, call: Call, model: TracedModel) -> Any:
    channels = model.channels
    is_meant = _calls_of(site, call)

    def output(module: nn.Module, args: Any, kwargs: Any, value: Any) -> Any:
        if not is_meant():
            return None
        old = hidden(value, site.index)
        new = call.edited(edit, flat(old, channels, call.tokens.ctx_len(old)), site)
        return None if new is None else with_hidden(value, unflat(new, old, channels), site.index)

    def inputs(module: nn.Module, args: Any, kwargs: Any) -> Any:
        old = input_or_none(module, args, kwargs, site.index) if is_meant() else None
        if old is None:
            return None
        new = call.edited(edit, flat(old, channels, call.tokens.ctx_len(old)), site)
        return None if new is None else with_input(module, args, kwargs, unflat(new, old, channels), site.index)

    if site.side == "out":
        return module.register_forward_hook(cast(Any, output), with_kwargs=True)
    return module.register_forward_pre_hook(cast(Any, inputs), with_kwargs=True)


def _calls_of(site: Site, call: Call) -> Callable[[], bool]:
    """Returns a function that counts a module's calls, and tells whether this one is meant."""
    seen, number = 0, itertools.count()

    def is_meant() -> bool:
        nonlocal seen, number
        if not call.is_open:  # the module is called on its own
            return call.is_edited and site.call in (None, 0)
        if seen != call.n_calls:  # the model was called again
            seen, number = call.n_calls, itertools.count()
        return next(number) == site.call or site.call is None if call.is_edited else False

    return is_meant
