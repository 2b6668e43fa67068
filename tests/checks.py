"""Checks of types and shapes at every call of the package, at half the cost of the import hook alone.

jaxtyping binds the arguments and keeps a table of axes at each call. Of a function that names no
shape, only the types are to be checked, which beartype does by itself.
"""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype.roar import BeartypeCallHintViolation

TYPES = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
"""An int will do where a float is asked for."""
_with_shapes = jaxtyping.jaxtyped


def install() -> None:
    """Checks all that is imported of the package from now on."""
    jaxtyping.jaxtyped = _checked  # what the hook puts on each function
    jaxtyping.install_import_hook("dictionary_learning", TYPES)


def _checked(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(fn: Any) -> Any:
        if inspect.isfunction(fn) and _is_plain(fn):
            return _of_types(fn, typechecker)
        return _with_shapes(fn, typechecker=typechecker)

    return decorate


def _is_plain(function: Any) -> bool:
    """Returns whether no annotation is of a shape, or a text that may be; what a generator yields is jaxtyping's."""
    lazy = inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function)
    return not lazy and not any(_may_have_shape(hint) for hint in function.__annotations__.values())


def _may_have_shape(hint: Any) -> bool:
    if isinstance(hint, str | typing.ForwardRef | typing.TypeVar):
        return True
    if isinstance(hint, list | tuple):
        return any(map(_may_have_shape, hint))
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_may_have_shape, typing.get_args(hint)))


def _of_types(fn: Any, typechecker: Callable[[Any], Any]) -> Any:
    checked = typechecker(fn)
    if checked is fn:  # nothing is annotated
        return fn

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable or getattr(fn, "__no_type_check__", False):
            return fn(*args, **kwargs)
        try:
            return checked(*args, **kwargs)
        except BeartypeCallHintViolation as error:
            raise jaxtyping.TypeCheckError(str(error)) from error

    return call
