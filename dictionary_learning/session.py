"""A run again: its model, its dictionaries and the activations that it trained on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dictionary_learning._border import checked
from dictionary_learning._run_folder import resolve_latest
from dictionary_learning._text_reading import ContextReading
from dictionary_learning._trained_on import (
    buffer_of,
    check_named,
    check_reading,
    contexts_of,
    filter_of,
    model_of,
    text_of,
)
from dictionary_learning._types import ModelLike
from dictionary_learning.activations import TokenFilter
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.data import Source, as_source
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.interop._saved import saved_at
from dictionary_learning.models import TracedModel, load_model
from dictionary_learning.sites import Site

_OF_THE_BUFFER = (
    "n_ctxs", "refresh_batch_size", "out_batch_size", "dtype", "seed", "end_of_data",
)  # fmt: skip
"""Settings that a buffer stores under the names of its arguments; sites name their sides."""


_CTX_LEN = 128
_N_CTXS = 1024
"""Contexts in the buffer, where the run had none."""


class Session(NamedTuple):
    """What a run was made of."""

    model: TracedModel
    dictionaries: dict[str, Dictionary]
    """By their names in the run."""
    activations: ActivationBuffer
    """The rows that they trained on, from the first one on, at all of the run's sites. For a run on
    a cache or on whole contexts, rows of the same text in another order."""
    held_out: Source | None
    """The documents that they did not train on; None where none were held out."""


@checked()
def load_session(
    place: str | os.PathLike[str],
    *,
    model: ModelLike | str | None = None,
    data: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
) -> Session:
    """Loads a run: its language model, its dictionaries, its text and how that was read.

    What the files of the run do not know must be given: a run of the shell knows all, one from
    Python no text. They may be a stranger's, so a model or text that they name is read only if it
    is on the hub or in the current folder.

    Args:
        place: The folder of a run or of one of its dictionaries, such as `runs/latest`.
        model: The language model, instead of the one that the files name.
        data: The text, as for an `ActivationBuffer`, instead of the one that the files name.
        device: Where all of it is; the accelerator if there is one.
        dtype: The dtype of a model that is loaded by its name; by default as in training.

    Raises:
        ConfigError: The model or the text is not known, or lies elsewhere.
        CheckpointError: There is no dictionary, or one cannot be read.
    """
    saved = saved_at(resolve_latest(str(place)))
    config = saved[0].config
    traced = _model(config, model, device, dtype)
    text, held_out = _text(config, data)
    dictionaries = {one.name: one.dictionary.to(traced.device) for one in saved}
    # the sites of the run: those of a dictionary alone would give other rows
    names = buffer_of(config).get("sites") or [name for one in saved for name in one.dictionary.info.sites]
    sites = traced.sites([str(Site.parse(name)) for name in dict.fromkeys(names)])
    return Session(traced, dictionaries, _activations(config, text, traced, sites), held_out)


def _model(
    config: Mapping[str, Any], given: Any, device: torch.device | str | None, dtype: torch.dtype | str | None
) -> TracedModel:
    if given is not None:
        return load_model(given, device=device, dtype=dtype)
    named = model_of(config)
    if named is None:
        raise ConfigError("The files do not say which model it was trained on. Give model='...'.")
    check_named("model", "model=", named.name)
    own = buffer_of(config).get("model", {}).get("dtype")
    return load_model(named.name, device=device, dtype=dtype or own, revision=named.revision)


def _text(config: Mapping[str, Any], given: Any) -> tuple[Source, Source | None]:
    """Returns the text that was trained on, and what was held out of it."""
    if given is not None and not isinstance(given, (str, Path)):
        return as_source(given), None
    trained = text_of(config)
    if trained is None or trained.data is None:
        if given is None:
            raise ConfigError("The files do not say which text it was trained on. Give data='...'.")
        return as_source(given), None
    if given is None:
        check_named("text", "data=", trained.data)
        check_reading(trained.reading, "data=")
    data = trained.data if given is None else str(given)
    if trained.held_out_every is None:
        return trained.reading.source(data), None
    return trained.reading.divided(data, trained.held_out_every)


def _activations(config: Mapping[str, Any], text: Source, model: TracedModel, sites: list[Site]) -> ActivationBuffer:
    own = buffer_of(config)
    rule = filter_of(config)
    options: dict[str, Any] = {"n_ctxs": _N_CTXS} | {
        name: own[name] for name in _OF_THE_BUFFER if own.get(name) is not None
    }
    rules = contexts_of(config) or ContextReading()
    contexts: Any = rules.contexts(text, model, own.get("ctx_len") or _CTX_LEN, options.get("end_of_data", "stop"))
    if rule:
        options |= TokenFilter.from_dict(rule).arguments()
        # those that are no special ones were asked for
        options["exclude_tokens"] = [i for i in options["exclude_tokens"] if i not in contexts.special_ids]
    options |= {"ctx_len": contexts.ctx_len, "pack": contexts.pack}
    return ActivationBuffer(contexts, model, sites, device=model.device, **options)
