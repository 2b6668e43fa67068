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
    has_shape: bool
    has_text: bool
    """Whether an annotation is a text, which may be of a shape."""
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
        # what is lazy runs when the axes of its call are no more
        is_lazy = inspect.isgeneratorfunction(fn) or inspect.iscoroutinefunction(fn)
        if (is_lazy and (kind.has_shape or kind.has_text or _is_inner(fn))) or (kind.has_text and _is_inner(fn)):
            return _by_jaxtyping(fn, typechecker=typechecker)
        return _at_calls(fn, kind, typechecker)

    return decorate


def _is_inner(fn: Any) -> bool:
    return "<locals>" in fn.__qualname__


def _kind_of(fn: Any) -> _Kind:
    kind = _inner.get(fn.__code__)
    if kind is None or kind.hints != fn.__annotations__:
        hints = fn.__annotations__.values()
        kind = _Kind(fn.__annotations__, *(any(_has(hint, asked) for hint in hints) for asked in (_is_shape, _is_text)))
        if _is_inner(fn):
            _inner[fn.__code__] = kind
    return kind


def _at_calls(fn: Any, kind: _Kind, typechecker: Callable[[Any], Any]) -> Any:
    has_shape, check = kind.has_shape or kind.has_text, None

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
    if kind.has_text:
        return typechecker(_with_hints(fn))
    if not _is_inner(fn):
        return typechecker(fn)
    if kind.check is None:
        kind.check = typechecker(_passing(fn))
    return functools.partial(kind.check, **{_CALLED: fn})


def _with_hints(fn: Any) -> Callable[..., Any]:
    """Returns the same function with what its texts mean; of what is known to type checkers only, all is right."""
    same = types.FunctionType(fn.__code__, fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
    same.__kwdefaults__, same.__qualname__, same.__module__ = fn.__kwdefaults__, fn.__qualname__, fn.__module__
    for name, hint in fn.__annotations__.items():
        alone = types.SimpleNamespace(__annotations__={name: hint})
        try:
            same.__annotations__[name] = typing.get_type_hints(alone, fn.__globals__, include_extras=True)[name]
        except NameError:
            same.__annotations__[name] = Any
    return same


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
