"""Parts of models and folders of runs, by the functions of dictionary-learning 0.1."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning.errors import ModelError, SiteError


class EarlyStopException(Exception):
    """Ends a forward pass after the activations that are needed."""


def collect_activations(
    model: Any, submodule: nn.Module, inputs_BL: Mapping[str, Tensor], use_no_grad: bool = True
) -> Tensor:
    """Returns a submodule's output (batch, ctx, dim); the model is left after it."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, outputs: Any) -> None:
        found.append(outputs[0] if isinstance(outputs, tuple) else outputs)
        raise EarlyStopException

    handle = submodule.register_forward_hook(keep)
    try:
        with torch.no_grad() if use_no_grad else contextlib.nullcontext(), contextlib.suppress(EarlyStopException):
            model(**inputs_BL)
    finally:
        handle.remove()
    if not found:
        raise SiteError("The forward pass did not reach the submodule. Give one that runs.")
    return found[0]


def get_submodule(model: Any, layer: int) -> Any:
    """Returns a block, whose output is the residual stream after it."""
    name, layers = _blocks(model)
    if not 0 <= layer < len(layers):
        raise SiteError(f"Got layer={layer}; the model has {len(layers)} blocks, '{name}.0' and so on.")
    return layers[layer]


def truncate_model(model: Any, layer: int) -> Any:
    """Removes the blocks after a layer and the unembedding, in place, and returns the model."""
    name, layers = _blocks(model)
    if not 0 <= layer < len(layers):
        raise SiteError(f"Got layer={layer}; the model has {len(layers)} blocks, '{name}.0' and so on.")
    inside = _module(model)
    parent, _, last = name.rpartition(".")
    setattr(inside.get_submodule(parent), last, layers[: layer + 1])
    head = inside.get_output_embeddings() if hasattr(inside, "get_output_embeddings") else None
    for path, module in inside.named_modules():
        if head is not None and module is head:
            above, _, own = path.rpartition(".")
            setattr(inside.get_submodule(above), own, nn.Identity())
            break
    return model


def get_nested_folders(path: str | os.PathLike[str]) -> list[str]:
    """Returns the folders below a path that hold a dictionary, as `ae.pt` or as own files."""
    return [root for root, _, files in os.walk(path) if {"ae.pt", "dictionary.safetensors"} & set(files)]


def _module(model: Any) -> Any:
    return getattr(model, "_module", model) if not isinstance(model, nn.Module) else model


def _blocks(model: Any) -> tuple[str, Any]:
    """Returns the blocks of a language model, and their path: its longest list of modules."""
    lists = [(path, m) for path, m in _module(model).named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    depth = getattr(getattr(_module(model), "config", None), "num_hidden_layers", None)
    lists = [one for one in lists if len(one[1]) == depth] or lists
    if not lists:
        raise ModelError(f"A {type(model).__name__} has no list of blocks. Give its submodule by path.")
    path, found = max(lists, key=lambda one: (len(one[1]), -len(one[0])))
    if _module(model) is model:
        return path, found
    envoy = model  # of nnsight: the envoy of the blocks, which a trace knows
    for part in path.split("."):
        envoy = envoy[int(part)] if part.isdigit() else getattr(envoy, part)
    return path, envoy
