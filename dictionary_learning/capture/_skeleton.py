"""A second tree of modules that shares every tensor with the caller's model.

nnsight's controllers, evaluation mode and frozen parameters belong to the skeleton, so the caller's
model stays as it is. What the caller changes later does not reach the skeleton by itself (another
dtype, other weights, modules, hooks or adapters): `Snapshot` notices it, and a new one is built.
"""

import copy
import inspect
import operator
import types
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, nn

from dictionary_learning.errors import ModelError

_NO_PART_OF_FORWARD = ("_backward_", "_is_full_backward_", "_state_dict_", "_load_state_dict_", "_non_persistent_")
"""Beginnings of names of attributes that may change without a change of what a module computes."""


class Snapshot:
    """The structure of a model at one moment: modules, attributes, hooks and places of parameters.

    Values inside tensors are not part of it, since the skeleton shares them. Objects are compared
    by identity, and kept, so that no other object can take the place of one in memory.
    """

    def __init__(self, module: nn.Module):
        # accelerate loads offloaded tensors for each forward pass, and its models are traced
        # themselves
        self._ignored = {"training", *(("_parameters", "_buffers") if is_spread(module) else ())}
        self._attributes: list[tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]] = []
        self._containers: list[tuple[Collection[Any], tuple[Any, ...]]] = []
        self._classes = [(part, type(part)) for part in module.modules()]
        self._forwards = {kind: _forward_of(kind) for _, kind in self._classes}
        for part in module.modules():
            values = self._values(part)
            self._attributes.append((part, _items(part.__dict__), values))
            self._containers += [(v, _items(v)) for v in values if isinstance(v, (dict, list, tuple, set))]
        parameters = () if is_spread(module) else module.parameters()
        self._parameters = [(p, _address(p), p.dtype) for p in parameters]

    def is_current(self) -> bool:
        """Returns whether the model still has this structure."""
        return (
            all(type(part) is kind for part, kind in self._classes)
            and all(_forward_of(kind) is forward for kind, forward in self._forwards.items())
            and all(
                # before every run, over every module: calls of small functions would cost the most
                (len(whole) == len(part.__dict__) and all(map(operator.is_, whole, part.__dict__.values())))
                or _same(values, self._values(part))
                for part, whole, values in self._attributes
            )
            and all(
                len(items) == len(container)
                and all(map(operator.is_, items, container.values() if isinstance(container, dict) else container))
                for container, items in self._containers
            )
            # `p.data = new` leaves the parameter the same object
            and all(_address(p) == address and p.dtype == dtype for p, address, dtype in self._parameters)
        )

    def _values(self, part: nn.Module) -> tuple[Any, ...]:
        attributes = part.__dict__.items()
        return tuple([v for k, v in attributes if k not in self._ignored and not k.startswith(_NO_PART_OF_FORWARD)])


def is_spread(module: nn.Module) -> bool:
    """Returns whether accelerate spread a model over devices, with hooks bound to the modules."""
    return any(hasattr(part, "_hf_hook") for part in module.modules())


def skeleton(module: nn.Module) -> nn.Module:
    """Returns a second tree of modules that shares every tensor, frozen and in evaluation mode.

    A model that accelerate has spread over devices is returned itself.

    Raises:
        ModelError: the modules cannot be copied.
    """
    if is_spread(module):
        return module.eval().requires_grad_(False)
    memo: dict[int, Any] = {id(value): value for value in _shared(module)}
    for parameter in module.parameters():
        plain = type(parameter) is nn.Parameter
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False) if plain else parameter
    try:
        copied = copy.deepcopy(module, memo).eval()
    except (TypeError, RuntimeError) as error:
        raise ModelError(
            f"{type(module).__name__} holds something that cannot be copied ({error}). Its modules are copied without "
            "their tensors, so that the model itself is not changed; remove that attribute."
        ) from error
    for part in copied.modules():
        if "forward" in part.__dict__:
            part.forward = _rebound(part.__dict__["forward"], memo)
        if part._forward_hooks:
            _fold_hooks(part)
    return copied


def _shared(module: nn.Module) -> Iterator[Any]:
    """Yields what the skeleton shares with the model beside its parameters."""
    modules = {id(part) for part in module.modules()}
    for part in module.modules():
        yield from (buffer for buffer in part._buffers.values() if buffer is not None)
        for value in part.__dict__.values():
            if isinstance(value, Tensor) or (hasattr(value, "to_dict") and not isinstance(value, nn.Module)):
                yield value  # a config too: `set_attn_implementation` changes it in place
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
            if id(getattr(hook, "__self__", None)) not in modules:
                yield hook  # a recorder of the caller's, not a method of a module that has a copy


def _rebound(value: Any, memo: dict[int, Any]) -> Any:
    """Returns a function that holds the copies of the modules and methods that it held.

    `deepcopy` leaves functions as they are: a wrapper of `layer.forward` would run the caller's
    modules. Whatever else it holds, as a counter, it shares with the caller's.
    """
    if isinstance(value, nn.Module):
        return memo.get(id(value), value)
    if isinstance(value, types.MethodType):
        parts = _rebound(value.__func__, memo), _rebound(value.__self__, memo)
        return value if _same(parts, (value.__func__, value.__self__)) else types.MethodType(*parts)
    if not isinstance(value, types.FunctionType) or id(value) in memo:
        return memo.get(id(value), value)
    memo[id(value)] = value  # a function may hold itself
    cells, defaults = value.__closure__ or (), value.__defaults__ or ()
    held = [cell.cell_contents for cell in cells]
    moved = [_rebound(one, memo) for one in (*held, *defaults)]
    if not _same(tuple(moved), (*held, *defaults)):
        new_cells = [cell if a is b else types.CellType(b) for cell, a, b in zip(cells, held, moved, strict=False)]
        made = types.FunctionType(
            value.__code__, value.__globals__, value.__name__, tuple(moved[len(cells) :]), tuple(new_cells) or None
        )
        made.__kwdefaults__ = value.__kwdefaults__
        made.__dict__.update(value.__dict__)
        memo[id(value)] = made
    return memo[id(value)]


def _fold_hooks(part: nn.Module) -> None:
    """Moves a module's forward hooks into its `forward`.

    nnsight reads an output before the hooks run; the next module gets what they made of it.
    """
    hooks = [(hook, key in part._forward_hooks_with_kwargs) for key, hook in part._forward_hooks.items()]
    own: Any = part.forward
    bound = inspect.ismethod(own) and own.__self__ is part
    inner: Callable[..., Any] = own.__func__ if bound else own

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = inner(self, *args, **kwargs) if bound else inner(*args, **kwargs)
        for hook, with_kwargs in hooks:
            changed = hook(self, args, kwargs, output) if with_kwargs else hook(self, args, output)
            output = output if changed is None else changed
        return output

    part._forward_hooks.clear()
    # a method, not a closure over the module: nnsight keeps the function alone, and no cycle forms
    part.forward = types.MethodType(forward, part)


def _items(container: Collection[Any]) -> tuple[Any, ...]:
    return tuple(container.values()) if isinstance(container, dict) else tuple(container)


def _forward_of(kind: type) -> Any:
    """Returns the `forward` that stands in a class or its nearest base, as it stands there."""
    return next((vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base)), None)


def _same(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return len(before) == len(now) and all(map(operator.is_, before, now))


def _address(parameter: Tensor) -> int:
    try:
        return parameter.data_ptr()
    except RuntimeError:  # a subclass without storage of its own, as of quantized weights
        return id(parameter)
