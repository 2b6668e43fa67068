"""Loads models by name or wraps model objects: a `TracedModel` reads and writes activations at any `Site`.

Its `capture` stops after the last site; `run` goes on to the prediction, and lets functions replace
activations. Both take what the model takes. The caller's model object is never changed.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dictionary_learning._hardware import as_device
from dictionary_learning._hf_models import load_pretrained, load_tokenizer, takes_text
from dictionary_learning._module_io import Channels
from dictionary_learning._types import ModelLike
from dictionary_learning.capture import Edit, InputsLike, TracedModel
from dictionary_learning.capture._remote import RemoteTracer
from dictionary_learning.errors import ModelError

__all__ = ["Edit", "InputsLike", "TracedModel", "load_model"]

if TYPE_CHECKING:
    _Model = TracedModel
else:
    _Model = Any  # a `ModelSet` is returned as it is, and serves where only activations are needed


def load_model(
    model: ModelLike,
    *,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    example: Any = None,
    channels: Channels | None = None,
    remote: bool | str = False,
    **options: Any,
) -> _Model:
    """Loads a model by name, or wraps one that is loaded already.

    Args:
        model: a name on the Hugging Face hub, a local folder, a GGUF file, nnsight's `LanguageModel`,
            `TransformersModel` or `NNsight`, a Hugging Face model, any `torch.nn.Module`, or a
            `TracedModel` or `ModelSet`, which is returned as it is.
        tokenizer: the tokenizer, a processor that holds one, or its name; required for text with a
            model object that has none.
        device: of a model loaded by name; by default the accelerator if there is one. Objects stay
            where they are.
        dtype: of a model loaded by name; by default bfloat16 where the device is fast at it, else
            float32.
        revision: branch, tag or commit on the hub.
        example: inputs of a model that takes no token ids (see `TracedModel`).
        channels: where the model's maps have their channels (see `TracedModel`).
        remote: runs a model on NDIF's servers (True) or another (its URL), without its weights here;
            "local" does everything that a remote run does, in this process.
        options: passed on to `from_pretrained`, as `device_map` or `quantization_config`.

    Raises:
        ModelError: the model or tokenizer does not exist, or cannot be used.
        ConfigError: there is no such device.
    """
    if isinstance(model, TracedModel) or hasattr(model, "capture"):  # a `ModelSet`
        return model  # pyright: ignore[reportReturnType]
    if isinstance(tokenizer, str):
        tokenizer = load_tokenizer(tokenizer)
    if not isinstance(model, (str, os.PathLike)):
        if remote:
            raise ModelError(
                f"Got a {type(model).__name__} with remote={remote!r}; a server knows models by name. Give the name on the "
                "hub."
            )
        return _wrap(model, tokenizer, example, channels)
    name = str(model)
    known = Path(name).stem if name.endswith(".gguf") else name  # a GGUF file has the same name in every folder
    if remote:
        tokenizer = tokenizer or load_tokenizer(name, revision)
        tracer = RemoteTracer(name, tokenizer, revision=revision, remote=remote, options=options)
        return TracedModel(tracer.module, tokenizer, name=known, revision=revision, tracer=tracer)
    module = load_pretrained(name, as_device(device), dtype, revision, options)
    if tokenizer is None and takes_text(module):
        tokenizer = load_tokenizer(name, revision)
    return TracedModel(module, tokenizer, name=known, revision=revision, example=example, channels=channels)


def _wrap(model: Any, tokenizer: Any, example: Any, channels: Channels | None) -> TracedModel:
    module = model if isinstance(model, nn.Module) else getattr(model, "_module", None)
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"Got a {type(model).__name__} as the model; give a name, a folder, a GGUF file, a Hugging Face model, "
            "another torch.nn.Module, or an nnsight LanguageModel, TransformersModel or NNsight."
        )
    if not isinstance(model, nn.Module):
        if getattr(model, "dispatched", True) is False:
            model.dispatch()  # nnsight leaves parameters on `meta` until they are needed
            module = model._module
        tokenizer = model.__dict__.get("tokenizer") if tokenizer is None else tokenizer
    return TracedModel(module, tokenizer, example=example, channels=channels)
