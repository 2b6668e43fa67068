"""Frozen, strict settings, and registries that know near names.

A config is a frozen dataclass whose fields are documented where they stand, by a string under each. The same
class checks the values, reads and writes dictionaries of plain data, and gives the command line its options.
"""

import ast
import dataclasses
import functools
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar, cast

from dictionary_learning.errors import ConfigError, UnknownNameError

C = TypeVar("C", bound="BaseConfig")
T = TypeVar("T")
Entry = TypeVar("Entry")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Base of every config: unknown names and wrong types are refused when it is built.

    Raises:
        ConfigError: a value has the wrong type; the message names the field, the value and the type.
    """

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            try:
                value = coerce(getattr(self, name), hint)
            except TypeError as error:
                where = f"{type(self).__qualname__}.{name}"
                raise ConfigError(f"{where} is {getattr(self, name)!r}; it must be {error}.") from None
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data that JSON and TOML can hold; classes are given by name."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """Builds the config from a mapping.

        Raises:
            UnknownNameError: a key is no field of this config.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise UnknownNameError(f"option of {cls.__qualname__}", key, known)
        # JSON, TOML and the command line have lists where fields have tuples
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    def replace(self: C, **changes: Any) -> C:
        """Returns a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


class Registry(Generic[T]):
    """Classes or functions by name; a function that takes a name also takes the object.

    Args:
        kind: what is registered, as it stands in error messages ("trainer").
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[Entry], Entry]:
        """Registers the decorated object under one or several names; the first is the canonical one."""

        # not T: a class must keep its own type, with what it adds to that of the registry
        def decorate(entry: Entry) -> Entry:
            for name in names:
                self._entries[name] = cast(T, entry)
            return entry

        return decorate

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._entries) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def items(self) -> list[tuple[str, T]]:
        """Returns (name, entry) pairs, each entry once, under its canonical name."""
        seen: dict[int, tuple[str, T]] = {}
        for name, entry in self._entries.items():
            seen.setdefault(id(entry), (name, entry))
        return list(seen.values())

    def canonical(self, name: str) -> str:
        """Returns the first of the names that an entry is registered under."""
        return self.name_of(self[name])

    def name_of(self, entry: T) -> str:
        """Returns the canonical name of a registered object."""
        for name, known in self._entries.items():
            if known is entry:
                return name
        raise UnknownNameError(self.kind, getattr(entry, "__name__", repr(entry)), self._entries)


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Returns the resolved annotation of each field."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Returns the string that stands under each field, own and inherited."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                name, text = ast.unparse(statement.target), following.value
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    docs[name] = " ".join(text.value.split())
    return docs


def coerce(value: Any, hint: Any) -> Any:
    """Returns the value in the annotated type, or raises TypeError saying what is needed.

    Only lossless changes are made: a whole float such as 3e4 to an int, an int to a float, a list to a tuple.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return coerce(value, option)
            except TypeError:
                continue
        raise TypeError(type_name(hint))
    if origin is Literal:
        if value in arguments:
            return value
        raise TypeError("one of " + ", ".join(map(repr, arguments)))
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple and isinstance(value, (list, tuple)):
        item = arguments[0] if arguments else Any
        return tuple(coerce(v, item) for v in value)
    if hint in (int, float) and isinstance(value, bool):
        raise TypeError(type_name(hint))
    expected = type(None) if hint is None else (origin or hint)
    if isinstance(expected, type) and not isinstance(value, expected):
        raise TypeError(type_name(hint))
    return value


def type_name(hint: Any) -> str:
    """Returns an annotation as a user reads it: "int or None"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if hint in (None, type(None)):
        return "None"
    if origin is tuple:
        return f"a list of {type_name(arguments[0])}" if arguments else "a list"
    if origin is type:
        return "a class"
    return getattr(hint, "__name__", str(hint))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseConfig):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, type):
        return value.__name__
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
