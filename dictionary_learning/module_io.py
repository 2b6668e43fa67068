"""The activations inside what a module gives or takes, and models that share their tensors.

A module's output is a tensor, or a tuple, named tuple, list or transformers' `ModelOutput` with a tensor somewhere in it; its
inputs are positional and keyword arguments. `hidden` finds the activations in any of these, and `with_hidden` puts others in
their place, in the same structure.

Activations have a batch first. What follows is brought to (batch, positions, dim) and back by `flat` and `unflat`: a vector is
one position, a map (batch, height, width, dim) has height * width of them.
"""

import copy
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Site

Channels = Literal["first", "last"]
"""Where maps of activations have their channels: (batch, dim, height, width), or (batch, height, width, dim)."""


def hidden_or_none(value: Any, index: int = 0) -> Tensor | None:
    """Returns the activations in a module's value: the tensor, or the first in the n-th part of a tuple or model output."""
    if isinstance(value, Tensor):
        return value if index == 0 else None
    parts = list(value.values()) if isinstance(value, Mapping) else value
    if isinstance(parts, (tuple, list)) and index < len(parts):
        return hidden_or_none(parts[index])
    return None


def hidden(value: Any, index: int = 0) -> Tensor:
    """Returns the activations in a module's value that is known to hold some."""
    tensor = hidden_or_none(value, index)
    assert tensor is not None, "the probe has seen a tensor here"
    return tensor


def with_hidden(value: Any, new: Tensor, index: int = 0) -> Any:
    """Returns the module's value with its activations replaced, in the same structure and dtype.

    A bare tensor where a tuple was would be unpacked along the batch by the next module, without an error.
    """
    if isinstance(value, Tensor):
        return new.to(value.dtype)
    if isinstance(value, (tuple, list)):
        parts = [*value[:index], with_hidden(value[index], new), *value[index + 1 :]]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    copied = copy.copy(value)
    key = list(copied)[index]
    copied[key] = with_hidden(copied[key], new)
    return copied


def inputs_in_order(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[int | str, Any]:
    """Returns what a module was called with: positions first, then keywords in the order in which its `forward` lists them.

    A caller may give the keywords in any order, as (cos, sin) before the hidden states.
    """
    listed = _parameters(type(module))
    known = sorted(kwargs, key=lambda name: listed.get(name, len(listed)))  # others as they came: sorting is stable
    return {**dict(enumerate(args)), **{name: kwargs[name] for name in known}}


def input_or_none(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], index: int = 0) -> Tensor | None:
    """Returns the activations in the n-th input of a module."""
    values = list(inputs_in_order(module, args, kwargs).values())
    return hidden_or_none(values[index]) if index < len(values) else None


def with_input(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], new: Tensor, index: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns a module's arguments with the activations in the n-th of them replaced."""
    key = list(inputs_in_order(module, args, kwargs))[index]
    if isinstance(key, int):
        return (*args[:key], with_hidden(args[key], new), *args[key + 1 :]), dict(kwargs)
    return tuple(args), {**kwargs, key: with_hidden(kwargs[key], new)}


def flat(x: Tensor, channels: Channels | None = None) -> Tensor:
    """Returns activations as (batch, positions, dim)."""
    if x.ndim == 2:
        return x.unsqueeze(1)
    if x.ndim > 3 and channels == "first":
        return x.flatten(2).transpose(1, 2)
    return x.flatten(1, -2)


def unflat(x: Tensor, like: Tensor, channels: Channels | None = None) -> Tensor:
    """Returns activations (batch, positions, dim) in the form of `like`: the inverse of `flat`."""
    if like.ndim > 3 and channels == "first":
        x = x.transpose(1, 2).contiguous()  # other strides are other kernels, and other bits
    return x.reshape(like.shape)


def replaced(x: Tensor, new: Tensor | None, changed: bool, site: Site) -> Tensor | None:
    """Returns what takes the place of activations, after an edit was given a copy of them.

    Args:
        x: what the edit was given.
        new: what it returned.
        changed: whether it changed what it was given.
        site: where that was.

    Raises:
        SiteError: the edit returned another shape, or changed the copy and returned nothing.
    """
    if new is None:
        if changed:
            raise SiteError(
                f"The edit at '{site}' changed what it was given and returned nothing, so the model would not see the change. "
                "Return the changed tensor."
            )
        return None
    if new.shape != x.shape:
        raise SiteError(
            f"The edit at '{site}' returned {tuple(new.shape)} for {tuple(x.shape)}; return the same shape."
        )
    return new


def skeleton(module: nn.Module) -> nn.Module:
    """Returns a second tree of modules that shares every tensor with this one, frozen and in evaluation mode."""
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        return module.eval().requires_grad_(False)  # accelerate's hooks are bound to the modules they sit on
    memo: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        plain = type(parameter) is nn.Parameter
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False) if plain else parameter
    return copy.deepcopy(module, memo).eval()


def device_of(module: nn.Module) -> torch.device:
    """Returns where a model takes its inputs: the device of its first parameter, or where accelerate runs it."""
    places = getattr(module, "hf_device_map", None) or {}
    for place in places.values():
        if place not in ("cpu", "disk", "meta"):
            return torch.device(place)
    first = next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.device("cpu") if places else first


@functools.cache
def _parameters(kind: type[nn.Module]) -> dict[str, int]:
    return {name: n for n, name in enumerate(inspect.signature(kind.forward).parameters)}
