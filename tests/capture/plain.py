"""Activations by PyTorch's hooks, on the model itself: what everything else is compared with."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn


def plain_values(model: nn.Module, path: str, *args: Any, **kwargs: Any) -> tuple[tuple, dict, Any]:
    """Returns copies of what a module was given, by position and by name, and of what it returned."""
    seen: list[Any] = []

    def before(_: nn.Module, given: tuple, named: dict) -> None:
        seen.extend([_copied(given), _copied(named)])

    module = model.get_submodule(path)
    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(lambda _, __, output: seen.append(_copied(output))),
    ]
    with torch.no_grad():
        model(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return tuple(seen[:3])


def plain_inputs(model: nn.Module, path: str, ids: Tensor) -> Tensor:
    """Returns a module's first input."""
    decoder = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    given, named, _ = plain_values(model, path, ids, **decoder, **cache)
    return given[0] if given else next(iter(named.values()))


def first_tensor(value: Any) -> Tensor:
    """Returns the first tensor of what a module gives: which modules give tuples differs from one transformers to the next."""
    return value if isinstance(value, Tensor) else first_tensor(value[0])


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (tuple, list)):
        return [_copied(part) for part in value]
    if isinstance(value, dict):
        return {name: _copied(part) for name, part in value.items()}
    return value
