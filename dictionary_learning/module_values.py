"""The activations inside what a module gives or takes, and models that share their tensors."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dictionary_learning.errors import SiteError
from dictionary_learning.sites import Site


def hidden_or_none(value: Any) -> Tensor | None:
    """Returns the activations in a module's value: the tensor, or the first of a tuple or model output."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (tuple, list)) and value:
        return hidden_or_none(value[0])
    if isinstance(value, Mapping) and value:  # transformers' ModelOutput
        return hidden_or_none(next(iter(value.values())))
    return None


def hidden(value: Any) -> Tensor:
    """Returns the activations in a module's value that is known to hold some."""
    tensor = hidden_or_none(value)
    assert tensor is not None, "the probe has seen a tensor here"
    return tensor


def with_hidden(value: Any, new: Tensor, site: Site) -> Any:
    """Returns the module's value with its activations replaced, in the same structure and dtype.

    A bare tensor where a tuple was would be unpacked along the batch by the next module, without an error.
    """
    old = hidden(value)
    if new.shape != old.shape:
        raise SiteError(
            f"The edit at '{site}' returned {tuple(new.shape)} for {tuple(old.shape)}; return the same shape."
        )
    new = new.to(old.dtype)
    if isinstance(value, Tensor):
        return new
    if isinstance(value, tuple):
        rest = (with_hidden(value[0], new, site), *value[1:])
        return type(value)(*rest) if hasattr(value, "_fields") else rest
    if isinstance(value, list):
        return [with_hidden(value[0], new, site), *value[1:]]
    copied = copy.copy(value)
    key = next(iter(copied))
    copied[key] = with_hidden(copied[key], new, site)
    return copied


def skeleton(module: nn.Module) -> nn.Module:
    """Returns a second tree of modules that shares every tensor with this one, frozen and in evaluation mode."""
    if getattr(module, "hf_device_map", None):
        return module.eval()  # accelerate's hooks are bound to the modules they sit on
    memo: dict[int, Any] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        plain = type(parameter) is nn.Parameter
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False) if plain else parameter
    return copy.deepcopy(module, memo).eval()
