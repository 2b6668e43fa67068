"""Command-line options made of configs: names, types, defaults and help come from their fields."""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from dictionary_learning._border import BOUNDS, check, check_local
from dictionary_learning._coercion import check_range, coerce, type_name
from dictionary_learning._said import saying
from dictionary_learning.cli._groups import group_of
from dictionary_learning.cli._parser import FALSE, OTHERS, TRUE, Parser, option_of
from dictionary_learning.config import BaseConfig, field_docs, field_types
from dictionary_learning.errors import ConfigError
from dictionary_learning.sites import parse_sites

C = TypeVar("C", bound=BaseConfig)

_FOLDERS = {"out": "save_dir", "save_dir": "out"}
"""Names of the folder that a command writes, of which each command has one and understands both."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandArguments(BaseConfig):
    """The arguments of a command, each an option; empty words and numbers out of range are refused.

    The docstring of a command's class is what its --help says of it.
    """

    positional: ClassVar[tuple[str, ...]] = ()
    """The fields that are given by position instead."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Names that other commands have for some of the fields, which are understood too."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # before the config says it in words of Python
            value: Any = getattr(self, field.name)
            try:
                check_range(value, field.metadata.get("bounds", {}))
            except ValueError as error:
                raise ConfigError(f"Got {option_of(field.name)} {value}; it must be {error}.") from None
            except TypeError:
                continue  # which the config refuses
        super().__post_init__()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if number == "":
                    raise ConfigError(f"Got an empty {option_of(field.name)}. Give a value, or leave it out.")
                try:
                    check_range(number, BOUNDS.get(field.name, {}))
                except ValueError as error:
                    raise ConfigError(f"Got {option_of(field.name)} {number}; it must be {error}.") from None
            check_local(field.name, value)
            if field.name in ("device", "storage_device"):
                check("device", value, Any)
            if field.name in ("sites", "target_sites") and isinstance(value, tuple):
                parse_sites(value)
            if field.name in ("save_dir", "out", "destination") and value and Path(str(value)).is_file():
                raise ConfigError(f"Got {option_of(field.name)} {value}, which is a file. Give a folder.")

    def run(self) -> int | None:
        """Runs the command; returns its exit status, where that is not 0."""
        raise NotImplementedError

    def options(self, *names: str) -> dict[str, Any]:
        """Returns the values of some options, to pass on under their own names."""
        return {name: getattr(self, name) for name in names}


def config_parser(command: str, config: type[CommandArguments], **options: Any) -> Parser:
    """Returns the parser of a command that takes the fields of one config."""
    parser = Parser(command, " ".join((config.__doc__ or "").split()), **options)
    add_config(parser, config)
    fields = {field.name for field in dataclasses.fields(config)}
    parser.aliases |= {told: name for told, name in _FOLDERS.items() if name in fields and told not in fields}
    parser.aliases |= config.aliases
    parser.set_defaults(run=lambda namespace: read_config(namespace, config).run())
    return parser


def add_config(
    parser: Parser,
    config: type[BaseConfig],
    *,
    exclude: Collection[str] = (),
    several: bool = False,
    defaults: BaseConfig | None = None,
) -> None:
    """Adds an option for each field of a config.

    Args:
        parser: gets the options.
        config: the class of the config.
        exclude: fields that get no option.
        several: whether each option takes several values, of which every combination is meant.
        defaults: a config whose values replace the defaults of the fields.
    """
    name = config.__qualname__.removesuffix(".Config").removesuffix("Config")
    otherwise = f"{name.removeprefix('Trainer')} only" if several else OTHERS
    docs, hints = field_docs(config), field_types(config)
    positional = config.positional if issubclass(config, CommandArguments) else ()
    for field in dataclasses.fields(config):
        if field.name in exclude:
            continue
        hint = hints[field.name]
        # with several values, a list is one word with commas
        is_list = typing.get_origin(hint) is tuple and not several
        item = typing.get_args(hint)[0] if is_list else hint
        has_default = field.default is not dataclasses.MISSING
        default = field.default if defaults is None else getattr(defaults, field.name)
        options: dict[str, Any] = {
            "type": functools.partial(_read, item),
            "help": docs.get(field.name, "").replace("%", "%%"),
        }
        if has_default:
            options["default"] = [default] if several else default
        if field.name in positional:
            least = "*" if is_list else "?"
            nargs = least if has_default else "+" if is_list else None
            parser.add_argument(field.name, nargs=nargs, **options)
            continue
        if has_default and default not in (None, (), False):  # what these mean, the help says
            options["help"] += f" (default: {_show(default)})"
        if bool in (item, *typing.get_args(item)):
            words = [word for part in typing.get_args(item) for word in typing.get_args(part)]
            parser.flags[option_of(field.name)] = [str(word) for word in words]
        options["metavar"] = "" if default is False and not several and item is bool else _metavar(item)
        options["nargs"] = "+" if is_list or several else None
        group = parser.group(group_of(field.name, otherwise))
        group.add_argument(option_of(field.name), dest=field.name, required=not has_default, **options)


def read_config(namespace: argparse.Namespace, config: type[C]) -> C:
    """Returns the config that the parsed options describe."""
    values = {name: value for name, value in vars(namespace).items() if name in field_types(config)}
    return saying(config.from_dict(values), namespace.given)


def read_configs(namespace: argparse.Namespace, config: type[C], build: Callable[..., C] | None = None) -> list[C]:
    """Returns a config for each combination of the values of its options that were given.

    Args:
        namespace: the parsed options.
        config: the class of the config.
        build: a function of these options by name, which may derive others; by default the class.
    """
    values = {name: getattr(namespace, name) for name in field_types(config) if name in namespace.given}
    chosen = [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    return [config.from_dict(each) if build is None else build(**each) for each in chosen]


def _metavar(hint: Any) -> str:
    """Returns INT or FLOAT, choices as written, or NAME for what is an object in Python."""
    # that "none" is possible too, the help says where it matters
    name = type_name(hint).replace(" or None", "").replace("bool or ", "true|").replace(" ", "")
    return name if "|" in name else name.upper() if name in ("int", "float", "bool", "str") else "NAME"


def _read(hint: Any, word: str) -> Any:
    """Returns what a word stands for in a type, for argparse."""
    try:
        return _value(word, hint)
    except (TypeError, ValueError) as error:
        wanted = type_name(hint)
        if _has_none(hint):  # a choice "none" beside None, the default, which no word means
            wanted = wanted.replace(" or None", "")
        raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}") from error


def _has_none(hint: Any) -> bool:
    """Returns whether "none" is a choice of its own, and no word for None."""
    return any("none" in typing.get_args(part) for part in (hint, *typing.get_args(hint)))


def _value(word: str, hint: Any) -> Any:
    """Returns what a word stands for in a type; raises ValueError if it stands for nothing."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if _has_none(hint):
        arguments = tuple(part for part in arguments if part is not type(None))
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            with contextlib.suppress(TypeError, ValueError):
                return _value(word, option)
    elif origin is tuple:
        return tuple(_value(part, arguments[0]) for part in word.split(","))
    elif hint is int:
        with contextlib.suppress(ValueError):
            return int(word)
        return coerce(float(word), int)  # an int may be written as 1e6
    elif hint is float:
        return float(word)
    elif hint is bool and word.lower() in (*TRUE, *FALSE):
        return word.lower() in TRUE
    elif hint is type(None) and word.lower() == "none":
        return None
    elif hint in (str, Any) or (origin is Literal and word in arguments):
        return word
    raise ValueError(word)


def _show(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)
