"""Command-line options made of configs: names, types, defaults and help come from their fields."""

import argparse
import dataclasses
import itertools
import types
import typing
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeVar

from dictionary_learning.config import BaseConfig, field_docs, field_types, type_name

C = TypeVar("C", bound=BaseConfig)


def add_config(
    parser: argparse.ArgumentParser,
    config: type[BaseConfig],
    *,
    positional: Collection[str] = (),
    exclude: Collection[str] = (),
    several: bool = False,
    defaults: BaseConfig | None = None,
) -> None:
    """Adds an option for each field of a config.

    Args:
        parser: gets the options.
        config: the config.
        positional: fields that are given by position.
        exclude: fields that get no option.
        several: whether each option takes several values, of which every combination is meant.
        defaults: a config whose values take the place of the fields' defaults.
    """
    group = parser.add_argument_group(
        f"{config.__qualname__.replace('.Config', '')} options" if several else "options of the run"
    )
    docs, hints = field_docs(config), field_types(config)
    for field in dataclasses.fields(config):
        if field.name in exclude:
            continue
        hint = hints[field.name]
        is_list = (
            typing.get_origin(hint) is tuple and not several
        )  # with several values, a list is one word with commas
        item = typing.get_args(hint)[0] if is_list else hint
        has_default = field.default is not dataclasses.MISSING
        about = docs.get(field.name, "").replace("%", "%%")
        options: dict[str, Any] = {"type": _reader(item), "help": about}
        if is_list or several:
            options["nargs"] = "+"
        if field.name in positional:
            if has_default:
                options |= {"nargs": "?", "default": field.default}
            parser.add_argument(field.name, **options)
            continue
        if has_default:
            default = field.default if defaults is None else getattr(defaults, field.name)
            options["help"] += f" (default: {_show(default)})"
            options["default"] = [default] if several else default
        options["metavar"] = type_name(item).replace(" or None", "").upper().replace(" ", "")
        group.add_argument(f"--{field.name.replace('_', '-')}", dest=field.name, required=not has_default, **options)
        if has_default and "_" in field.name:  # as it is written in Python
            hidden = {**options, "help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
            group.add_argument(f"--{field.name}", dest=field.name, **hidden)


def read_config(namespace: argparse.Namespace, config: type[C]) -> C:
    """Returns the config that the parsed options describe."""
    names = [f.name for f in dataclasses.fields(config)]
    return config.from_dict({name: value for name, value in vars(namespace).items() if name in names})


def read_configs(namespace: argparse.Namespace, config: type[C], exclude: Collection[str] = ()) -> list[C]:
    """Returns a config for each combination of the values given for its options."""
    names = [f.name for f in dataclasses.fields(config) if f.name not in exclude]
    values = [getattr(namespace, name) for name in names]
    return [config.from_dict(dict(zip(names, chosen, strict=True))) for chosen in itertools.product(*values)]


def _reader(hint: Any) -> Callable[[str], Any]:
    """Returns a function that reads a value of that type from a word."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    options = arguments if origin in (typing.Union, types.UnionType, Literal) else (hint,)

    def read(word: str) -> Any:
        for option in options:
            if option in (None, type(None)) and word.lower() == "none":
                return None
            if option is bool and word.lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
                return word.lower() in ("true", "yes", "on", "1")
            if option is int:
                try:
                    return int(float(word)) if float(word).is_integer() else int(word)
                except ValueError:
                    continue
            if option is float:
                try:
                    return float(word)
                except ValueError:
                    continue
            if option in (str, Any) or (origin is Literal and word == option):
                return word
            if typing.get_origin(option) is tuple:
                item = _reader(typing.get_args(option)[0])
                return tuple(item(part) for part in word.split(","))
            if typing.get_origin(option) is Literal and word in typing.get_args(option):
                return word
        raise argparse.ArgumentTypeError(f"{word!r} is not {type_name(hint)}")

    return read


def _show(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)
