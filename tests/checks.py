"""Checks of types and shapes at every call of the package, at a small part of the import hook's cost.

By itself, jaxtyping has beartype make two checks of each function, of its arguments and of these
with its result, and makes those of a function in a function anew whenever the outer one runs. Here
one check is made of a function, when it is first called, and once for all that one `def` makes.
"""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype.roar import BeartypeCallHintViolation

TYPES = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
"""An int will do where a float is asked for."""
_by_jaxtyping = jaxtyping.jaxtyped
_AXES, _CONFIG = _by_jaxtyping("context"), jaxtyping.config
"""Within the former, an axis has one length. Where a function names no shape, only types are checked."""
_inner: dict[types.CodeType, "_Kind"] = {}
"""What is known of the functions that a `def` in a function makes."""
_CALLED = "_called_once_checked"


@dataclasses.dataclass
class _Kind:
    """What functions of one `def` have in common."""

    hints: dict[str, Any]
    is_left_to_jaxtyping: bool
    has_shape: bool
    check: Callable[..., Any] | None = None


def install() -> None:
    """Checks all that is imported of the package from now on."""
    jaxtyping.jaxtyped = checked  # what the hook puts on each function
    jaxtyping.install_import_hook("dictionary_learning", TYPES)


def checked(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Stands for `jaxtyping.jaxtyped`."""

    def decorate(fn: Any) -> Any:
        if inspect.isclass(fn):
            if dataclasses.is_dataclass(fn) and "__init__" in vars(fn):
                fn.__init__ = decorate(fn.__init__)
            return fn
        if not inspect.isfunction(fn):
            return _by_jaxtyping(fn, typechecker=typechecker)
        if not fn.__annotations__:
            return fn
        kind = _kind_of(fn)
        return (
            _by_jaxtyping(fn, typechecker=typechecker)
            if kind.is_left_to_jaxtyping
            else _at_calls(fn, kind, typechecker)
        )

    return decorate


def _kind_of(fn: Any) -> _Kind:
    """Returns what is known of a function: a text as annotation may be of a shape, and generators are jaxtyping's."""
    known = _inner.get(fn.__code__)
    if known is not None and known.hints == fn.__annotations__:
        return known
    hints = fn.__annotations__.values()
    is_left = (
        inspect.isgeneratorfunction(fn)
        or inspect.iscoroutinefunction(fn)
        or any(_has(hint, _is_text) for hint in hints)
    )
    kind = _Kind(fn.__annotations__, is_left, any(_has(hint, _is_shape) for hint in hints))
    if "<locals>" in fn.__qualname__:
        _inner[fn.__code__] = kind
    return kind


def _at_calls(fn: Any, kind: _Kind, typechecker: Callable[[Any], Any]) -> Any:
    has_shape, check = kind.has_shape, None

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal check
        __tracebackhide__ = True
        if _CONFIG.jaxtyping_disable:
            return fn(*args, **kwargs)
        if check is None:
            check = _check_of(fn, kind, typechecker)
        try:
            if has_shape:
                with _AXES:
                    return check(*args, **kwargs)
            return check(*args, **kwargs)
        except BeartypeCallHintViolation as error:
            raise jaxtyping.TypeCheckError(str(error)) from error

    return call


def _check_of(fn: Any, kind: _Kind, typechecker: Callable[[Any], Any]) -> Callable[..., Any]:
    if "<locals>" not in fn.__qualname__:
        return typechecker(fn)
    if kind.check is None:
        kind.check = typechecker(_passing(fn))
    return functools.partial(kind.check, **{_CALLED: fn})


def _passing(fn: Any) -> Callable[..., Any]:
    """Returns what has the signature of a function, holds nothing that it holds, and calls the one it is given."""
    empty = tuple(types.CellType() for _ in fn.__code__.co_freevars)
    alike = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, None, empty)
    alike.__annotations__, alike.__qualname__ = fn.__annotations__, fn.__qualname__

    @functools.wraps(alike)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return kwargs.pop(_CALLED)(*args, **kwargs)

    return call


def _has(hint: Any, asked: Callable[[Any], bool]) -> bool:
    """Returns whether a part of a hint is what is asked for."""
    if isinstance(hint, list | tuple):
        parts = hint
    elif isinstance(hint, typing.TypeVar):
        parts = (hint.__bound__, *hint.__constraints__)
    else:
        parts = () if typing.get_origin(hint) is typing.Literal else typing.get_args(hint)
    return asked(hint) or any(_has(part, asked) for part in parts)


def _is_text(hint: Any) -> bool:
    return isinstance(hint, str | typing.ForwardRef)


def _is_shape(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
