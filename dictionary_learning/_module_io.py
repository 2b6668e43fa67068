"""Activations inside a module's inputs and outputs.

An output is a tensor, or a tuple, named tuple, list or transformers' `ModelOutput` that holds one;
inputs are positional and keyword arguments. `hidden` finds the activations in any of these, and
`with_hidden` replaces them without changing the structure.

Activations have the batch first. `flat` brings them to (batch, positions, dim), and `unflat` back:
a vector is one position, a map (batch, height, width, dim) has height * width of them, and the rows
of a mixture of experts (batch * ctx, dim) are the tokens. Of several streams (streams, batch, ctx,
dim), as in Gemma 3n, the index chooses one, as in a tuple.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Site

Channels = Literal["first", "last"]
"""Where maps have their channels: (batch, dim, height, width), or (batch, height, width, dim)."""


def hidden_or_none(value: Any, index: int = 0) -> Tensor | None:
    """Returns the tensor itself, or the first one in the n-th part of a tuple or model output."""
    if isinstance(value, Tensor):
        streams = value if value.ndim == 4 else ()  # (streams, batch, ctx, dim); see `flat` for the first
        return value if index == 0 else streams[index] if index < len(streams) else None
    parts: Any = [*cast(Mapping[Any, Any], value).values()] if isinstance(value, Mapping) else value
    if isinstance(parts, (tuple, list)) and index < len(cast(Sequence[Any], parts)):
        return hidden_or_none(parts[index])
    return None


def hidden(value: Any, index: int = 0) -> Tensor:
    """Returns the activations in a value in which the probe found some."""
    tensor = hidden_or_none(value, index)
    assert tensor is not None, "the probe found a tensor here"
    return tensor


def with_hidden(value: Any, new: Tensor, index: int = 0) -> Any:
    """Returns a module's value with its activations replaced, in the same structure and dtype."""
    if isinstance(value, Tensor):
        return (
            torch.cat([value[:index], new[None].to(value.dtype), value[index + 1 :]]) if index else new.to(value.dtype)
        )
    # a bare tensor in place of a tuple would be unpacked along the batch by the next module,
    # silently
    if isinstance(value, (tuple, list)):
        parts: list[Any] = list(cast(Sequence[Any], value))
        parts[index] = with_hidden(parts[index], new)
        if isinstance(value, list):
            return parts
        kind = cast(Any, type(value))  # pyright: ignore[reportUnknownArgumentType]
        return kind(*parts) if hasattr(kind, "_fields") else tuple(parts)
    copied = copy.copy(value)
    key = list(copied)[index]
    copied[key] = with_hidden(copied[key], new)
    return copied


def inputs_in_order(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[int | str, Any]:
    """Returns a module's arguments: positional ones, then named ones in the order of `forward`."""
    listed = _parameters(type(module))
    # callers order keywords freely, as (cos, sin) before the hidden states; unknown ones keep their
    # order
    known = sorted(kwargs, key=lambda name: listed.get(name, len(listed)))
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


def flat(x: Tensor, channels: Channels | None = None, ctx_len: int | None = None) -> Tensor:
    """Returns a module's activations as (batch, positions, dim); text has contexts of `ctx_len`."""
    if x.ndim == 2:
        if ctx_len and x.shape[0] % ctx_len == 0:
            return torch.unflatten(x, 0, (-1, ctx_len))  # (batch * ctx, dim), as in a mixture of experts
        return x.unsqueeze(1)  # (batch, dim)
    if ctx_len and x.ndim == 4:
        return x[0]  # the first of several streams
    if x.ndim > 3 and channels == "first":
        return x.flatten(2).transpose(1, 2)
    return x.flatten(1, -2)


def unflat(x: Tensor, like: Tensor, channels: Channels | None = None) -> Tensor:
    """Returns activations (batch, positions, dim) in the form of `like`: the inverse of `flat`."""
    if like.ndim == 4 and like.shape[1:] == x.shape:
        return torch.cat([x[None].to(like.dtype), like[1:]])
    if like.ndim > 3 and channels == "first":
        x = x.transpose(1, 2).contiguous()  # other strides mean other kernels, and other bits
    return x.reshape(like.shape)


def apply_edit(edit: Callable[[Tensor], Any], x: Tensor, site: Site) -> Tensor | None:
    """Returns what an edit makes of a copy of activations; None if it leaves them unchanged.

    Raises:
        SiteError: the edit did not return a tensor of the same shape, or None with `x` unchanged.
    """
    version = None if x.is_inference() else x._version
    new = edit(x)
    if new is None and version is not None and x._version != version:
        raise SiteError(
            f"The edit at '{site}' changed its argument in place and returned nothing, so the model would not see "
            "the change. Return the changed tensor."
        )
    if new is not None and not (isinstance(new, Tensor) and new.shape == x.shape):
        got = tuple(new.shape) if isinstance(new, Tensor) else f"a {type(new).__name__}"
        raise SiteError(
            f"The edit at '{site}' returned {got} for {tuple(x.shape)}; return the same shape, or None to leave the "
            "activations unchanged."
        )
    return new


def device_of(module: nn.Module) -> torch.device:
    """Returns a model's input device: that of its first parameter, or where accelerate runs it."""
    places: dict[str, Any] = getattr(module, "hf_device_map", None) or {}
    for place in places.values():
        if place not in ("cpu", "disk", "meta"):
            return torch.device(place)
    first = next((p.device for p in module.parameters()), torch.device("cpu"))
    return torch.device("cpu") if places else first


@functools.cache
def _parameters(kind: type[nn.Module]) -> dict[str, int]:
    return {name: n for n, name in enumerate(inspect.signature(kind.forward).parameters)}
