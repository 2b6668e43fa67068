"""Frozen, strict configs, and registries that suggest near names.

A config is a frozen dataclass. A string under each field documents it. The same class checks the
values, reads and writes plain data, and defines the options of the command line.

A field made by `setting` has a range. A field made by `auto` may be left out: `resolve` computes
its value from a rule that stands at the field, so that a resolved config has no empty fields.
"""

import ast
import contextlib
import dataclasses
import functools
import inspect
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar, cast

from dictionary_learning._coercion import check_range, coerce, meant, type_name as type_name
from dictionary_learning.errors import ConfigError, UnknownNameError

C = TypeVar("C", bound="BaseConfig")
T = TypeVar("T")
Entry = TypeVar("Entry")

DEBUG = False
"""A flag of dictionary-learning 0.1, which made nnsight check each trace. Nothing reads it."""


def setting(default: T, **bounds: float) -> T:
    """Returns a config field with a range: `at_least`, `above`, `at_most` or `below` a number."""
    return dataclasses.field(default=default, metadata={"bounds": bounds})


def auto(rule: Callable[[Any], Any], **bounds: float) -> Any:
    """Returns a config field that `resolve` computes if it is left out; bounds as in `setting`.

    The rule's argument has the other fields and the facts of the run as attributes.
    """
    return dataclasses.field(default=None, metadata={"rule": rule, "bounds": bounds})


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Base of all configs. Unknown names, wrong types and values out of range raise ConfigError."""

    def __new__(cls: type[C], *values: Any, **named: Any) -> C:
        """Refuses what the generated `__init__` would raise a TypeError for."""
        known = [field.name for field in dataclasses.fields(cls)]
        own = [name for name, hint in inspect.get_annotations(cls).items() if "ClassVar" not in str(hint)]
        if own and "__dataclass_fields__" not in vars(cls):  # they would have no effect
            fields = f"{cls.__qualname__} has the fields {', '.join(own)}"
            raise ConfigError(f"{fields}; decorate it with @dataclasses.dataclass(frozen=True, kw_only=True).")
        if values:
            raise ConfigError(f"{cls.__qualname__} got {values!r} by position; give settings by name.")
        for name in named:
            if name not in known:
                raise UnknownNameError(f"option of {cls.__qualname__}", name, known)
        return object.__new__(cls)

    def __init_subclass__(cls, **options: Any) -> None:
        """Takes `k = 7` for a new default of a field of a base; its type and range stay."""
        super().__init_subclass__(**options)
        own = inspect.get_annotations(cls)
        for base in cls.__mro__[1:]:
            for field in dataclasses.fields(base) if "__dataclass_fields__" in vars(base) else ():
                if field.name in vars(cls) and field.name not in own:
                    value = vars(cls)[field.name]
                    if not isinstance(value, dataclasses.Field):
                        setattr(cls, field.name, dataclasses.field(default=value, metadata=field.metadata))
                    own[field.name] = field_types(base)[field.name]
        if own:
            cls.__annotations__ = own

    def __post_init__(self) -> None:
        hints = field_types(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and "rule" in field.metadata:
                continue  # left to `resolve`
            try:
                value = coerce(meant(value), hints[field.name])
                check_range(value, field.metadata.get("bounds", {}))
            except (TypeError, ValueError) as error:
                where = f"{type(self).__qualname__}.{field.name}"
                raise ConfigError(f"{where} is {value!r}; it must be {error}.") from None
            object.__setattr__(self, field.name, value)

    def is_set(self, *names: str) -> bool:
        """Returns whether all of these fields have a value: not left out, or not None."""
        return all(getattr(self, name) is not None for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain data for JSON and TOML. Classes are written by name."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """Builds the config from a mapping; a key that is no field raises UnknownNameError."""
        if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"{cls.__qualname__} got {values!r}; give a mapping from its fields to values.")
        rules = {f.name for f in dataclasses.fields(cls) if "rule" in f.metadata}
        # JSON, TOML and the command line have lists where fields have tuples, and None where one is
        # left out
        given = {k: tuple(cast("list[Any]", v)) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**{k: v for k, v in given.items() if not (v is None and k in rules)})

    def replace(self: C, **changes: Any) -> C:
        """Returns a copy with some fields changed. The copy is checked again."""
        return self.from_dict({f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | changes)


class _Resolution:
    """A config's fields and the run's facts. An empty field is computed when a rule reads it."""

    def __init__(self, config: BaseConfig, facts: Mapping[str, Any]):
        self.asked = config
        # a fact comes before a field of the same name
        fields = {field.name: field for field in dataclasses.fields(config) if field.name not in facts}
        self._values = {**facts, **{name: getattr(config, name) for name in fields}}
        self._rules = {name: f.metadata["rule"] for name, f in fields.items() if "rule" in f.metadata}

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            raise AttributeError(name)
        if self._values[name] is None and name in self._rules:
            self._values[name] = self._rules[name](self)
        return self._values[name]


def resolve(config: C, **facts: Any) -> C:
    """Returns the config with empty fields filled in; rules see the facts, and it as `asked`."""
    values = _Resolution(config, facts)
    return config.replace(**{f.name: getattr(values, f.name) for f in dataclasses.fields(config)})


class Registry(Generic[T]):
    """Classes or functions by name; `kind` says in errors what is registered, as "trainer"."""

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[Entry], Entry]:
        """Registers the decorated object under one or several names; the first is canonical.

        Raises:
            ConfigError: A name belongs to something else. A module or a cell may run again.
        """

        # not T: a class must keep its own type, with what it adds to that of the registry
        def decorate(entry: Entry) -> Entry:
            for name in names:
                if name in self._entries and not is_same_definition(self._entries[name], entry):
                    raise ConfigError(
                        f"The {self.kind} '{name}' is {self._entries[name]!r}, and {entry!r} cannot take its place. "
                        "Register it under another name."
                    )
            for name in names:
                self._entries[name] = cast(T, entry)
            return entry

        return decorate

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownNameError(self.kind, name, self._entries) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def items(self) -> list[tuple[str, T]]:
        """Returns (name, entry) pairs, each entry once, under its canonical name."""
        return [(name, entry) for name, entry in self._entries.items() if name == self.name_of(entry)]

    def canonical(self, name: str) -> str:
        """Returns the first of the names that an entry is registered under."""
        return self.name_of(self[name])

    def name_of(self, entry: T) -> str:
        """Returns the canonical name of a registered object."""
        for name, known in self._entries.items():
            if known is entry:
                return name
        raise UnknownNameError(self.kind, getattr(entry, "__name__", repr(entry)), self._entries)


def is_same_definition(one: Any, other: Any) -> bool:
    """Returns whether two objects come from one definition that ran again, as in a notebook."""
    if not (hasattr(one, "__qualname__") and hasattr(other, "__qualname__")):  # instances, by their class and state
        return one is other or (is_same_definition(type(one), type(other)) and vars(one) == vars(other))
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Returns the resolved annotation of each field."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


@functools.cache
def field_docs(cls: type) -> dict[str, str]:
    """Returns the string that stands under each field, own and inherited."""
    docs: dict[str, str] = {}
    names = {field.name for field in dataclasses.fields(cls)}  # a ClassVar is no option
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base) or not inspect.get_annotations(base):
            continue  # a class that was made at run time has no source, and no fields either
        body = _definition(base)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                name, text = ast.unparse(statement.target), following.value
                if name in names and isinstance(text, ast.Constant) and isinstance(text.value, str):
                    docs[name] = " ".join(text.value.split())
    return docs


def _definition(cls: type) -> ast.ClassDef:
    """Returns the source of a class."""
    module = sys.modules.get(cls.__module__)
    with contextlib.suppress(OSError, TypeError, SyntaxError):  # not every module has a file
        if module is not None and (found := _classes_in(inspect.getsource(module)).get(cls.__qualname__)):
            return found
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    return body


@functools.lru_cache(maxsize=64)
def _classes_in(source: str) -> dict[str, ast.ClassDef]:
    """Returns the classes of a module by their qualified names.

    It is parsed once, which is faster than to look for each class in it, as `inspect` does.
    """
    found: dict[str, ast.ClassDef] = {}
    left: list[tuple[str, ast.stmt]] = [("", statement) for statement in ast.parse(source).body]
    for prefix, statement in left:
        if isinstance(statement, ast.ClassDef):
            found[prefix + statement.name] = statement
            left += [(f"{prefix}{statement.name}.", inner) for inner in statement.body]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, BaseConfig):
        return value.to_dict()
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in cast("Iterable[Any]", value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, type) or inspect.isroutine(value):
        return value.__name__
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
