"""Values in the types and ranges of annotations, for settings and for arguments of functions."""

import math
import numbers
import operator
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}
_WORDS: dict[Any, str] = {Mapping: "a mapping", Callable: "a function", os.PathLike: "a path"}
_SEQUENCES = (Sequence, Iterable, Collection)
_LARGEST = 2**63
"""What no size or count of torch reaches."""


class StandIn:
    """An object with the interface of another package, which stands for one of this package."""

    def stands_for(self) -> Any:
        """Returns the object that functions of this package take in its place."""
        raise NotImplementedError


def meant(value: Any) -> Any:
    """Returns what an argument stands for, also within a list, a tuple or a dict."""
    if isinstance(value, StandIn):
        return value.stands_for()
    is_dict = type(value) is dict
    parts: Any = value.values() if is_dict else value if isinstance(value, (list, tuple)) else ()
    if not any(isinstance(part, (StandIn, tuple)) for part in parts):
        return value
    found = [meant(part) for part in parts]
    if all(one is part for one, part in zip(found, parts, strict=True)):
        return value
    if is_dict:
        return dict(zip(value, found, strict=True))
    return type(value)(*found) if hasattr(value, "_fields") else type(value)(found)  # of a named tuple


def coerce(value: Any, hint: Any) -> Any:
    """Returns the value in the annotated type, or raises TypeError saying what is needed.

    Only lossless changes are made: a whole float such as 3e4 to an int, an int to a float, a list
    to a tuple, a number of numpy to one of Python.
    """
    if isinstance(hint, TypeVar):
        hint = hint.__bound__ or Any
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, (str, typing.ForwardRef)):
        return value  # what is named only, and imported nowhere, is checked where it is used
    if hint in (int, float, bool, str) and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()  # of NumPy or torch
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return coerce(value, option)
            except TypeError:
                continue
        raise TypeError(type_name(hint))
    if origin is Literal:
        if type(value) in map(type, arguments) and value in arguments:  # True is no 1, an array is equal to nothing
            return value
        raise TypeError("one of " + ", ".join(map(repr, arguments)))
    if origin in _SEQUENCES:  # a word is no list of letters
        if isinstance(value, (str, bytes)) or getattr(value, "shape", None) == ():  # nor is a tensor of one number
            raise TypeError(type_name(hint))
        if arguments[0] in (int, float) and type(value) in (list, tuple):
            return type(value)(coerce(part, arguments[0]) for part in value)
    if hint is int and _is_number(value) and _is_finite(value) and int(value) == value:
        return int(value)
    if hint is float and _is_number(value):
        try:
            return float(value)
        except OverflowError:
            raise TypeError("a number below 1e308") from None
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(coerce(part, arguments[0] if arguments else Any) for part in cast("Iterable[Any]", value))
    if hint in (int, float) and isinstance(value, bool):
        raise TypeError(type_name(hint))
    expected = type(None) if hint is None else (origin or getattr(hint, "array_type", hint))  # of jaxtyping
    if isinstance(expected, type) and not isinstance(value, expected):
        raise TypeError(type_name(hint))
    return value


def _is_number(value: Any) -> bool:
    # True is an int for Python; a tensor of one number is no Real
    return not isinstance(value, bool) and isinstance(value, numbers.Real)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int) or math.isfinite(value)  # an int may be larger than any float


def check_range(value: Any, bounds: Mapping[str, float]) -> None:
    """Raises ValueError for a number that is not finite or out of range, saying what is needed."""
    if not _is_number(value):
        return
    if not _is_finite(value):
        raise ValueError("a finite number")
    if not all(_BOUNDS[kind][0](value, bound) for kind, bound in bounds.items()):
        raise ValueError(" and ".join(f"{_BOUNDS[kind][1]} {bound:g}" for kind, bound in bounds.items()))
    if isinstance(value, int) and abs(value) >= _LARGEST:
        raise ValueError("below 2^63")


def type_name(hint: Any) -> str:
    """Returns an annotation as a user reads it: "int or None"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if hint in (None, type(None)):
        return "None"
    if origin is tuple or origin in _SEQUENCES:
        return f"a list of {type_name(arguments[0])}" if arguments else "a list"
    if origin is type:
        return "a class"
    return _WORDS.get(origin or hint) or getattr(hint, "__name__", str(hint))
