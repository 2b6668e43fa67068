"""Command-line options made of configs: names, types, defaults and help come from their fields."""

import argparse
import contextlib
import contextvars
import dataclasses
import functools
import itertools
import json
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, TypeVar

from dictionary_learning._border import BOUNDS, check, check_local
from dictionary_learning.cli._groups import TITLES, group_of, is_essential
from dictionary_learning.config import BaseConfig, check_range, coerce, field_docs, field_types, type_name
from dictionary_learning.errors import ConfigError, did_you_mean
from dictionary_learning.sites import parse_sites

C = TypeVar("C", bound=BaseConfig)

CONFIG = "--config"
"""The option that names a run file."""
IMPORT = "--import"
"""The option that every command has: a module to import before the others are read."""
QUIET = "--quiet"
"""The option that every command has: only warnings, errors and results are written."""
JSON = "--json"
"""The option that every command has: results are JSON."""
as_json: contextvars.ContextVar[bool] = contextvars.ContextVar("as_json", default=False)
"""Whether results are written as JSON."""
TRACEBACK = "--traceback"
"""The option that every command has: shows where an error came from."""
_OTHERS = "options"
"""The group of options that stand in no other."""
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandArguments(BaseConfig):
    """The arguments of a command, each an option; empty words and numbers out of range are refused.

    The docstring of a command's class is what its --help says of it.
    """

    positional: ClassVar[tuple[str, ...]] = ()
    """The fields that are given by position instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if number == "":
                    raise ConfigError(f"Got an empty {option_of(field.name)}. Give a value, or leave it out.")
                try:
                    check_range(number, BOUNDS.get(field.name, {}))
                except ValueError as error:
                    raise ConfigError(f"Got {option_of(field.name)} {number}; it must be {error}.") from None
            check_local(field.name, value)
            if field.name == "device":
                check(field.name, value, Any)
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


class Parser(argparse.ArgumentParser):
    """Reads the options of one command by their whole names, with either dash; errors are ours."""

    def __init__(self, command: str, description: str | None = None, **options: Any):
        about = (
            f"{IMPORT} MODULE imports a module first: trainers and nonlinearities that it registers are known by name. "
            f"{CONFIG} FILE reads options from a YAML, TOML or JSON file. {QUIET} writes only results, warnings and "
            f"errors; {JSON} writes results as JSON. {TRACEBACK} shows where an error came from."
        )
        prog = f"dictionary-learning {command}".strip()
        has_help = options.pop("add_help", True)
        parents: Sequence[argparse.ArgumentParser] = options.pop("parents", ())
        super().__init__(
            prog=prog, description=description, epilog=about, allow_abbrev=False, add_help=False, **options
        )
        self._groups: dict[str, Any] = {}
        self.flags: set[str] = set()
        """Options that may stand without a value, which then is true."""
        self.elsewhere: dict[str, str] = {}
        """Options that this command has under other circumstances, and which those are."""
        self.from_file: set[str] = set()
        """The options that a run file gives."""
        if has_help:
            self.add_argument("-h", "--help", action=_Help, help="Shows this.")
        for title in TITLES if has_help else ():
            self.group(title)
        for parent in parents:
            for action in parent._actions:
                self.group(group_of(action.dest, _OTHERS))._add_action(action)

    def group(self, title: str) -> Any:
        """Returns the group of options of a title."""
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        return self._groups[title]

    def show_only_essential(self) -> None:
        """Adds `--help-all`, without which --help shows only the options that most people need."""
        n_shown = sum(is_essential(action.dest) for action in self._actions if action.option_strings)
        about = f"Shows all {len(self._actions) - n_shown + 1} other options too."
        self.add_argument("--help-all", action=_Help, help=about)

    def take(self, values: Mapping[str, Any], path: str) -> None:
        """Takes what a run file gives; what the command gives itself goes before it.

        Raises:
            ConfigError: A name is no option, or a value cannot be one of it.
        """
        actions = {action.dest: action for action in self._actions if action.dest not in ("help", "help_all")}
        for name, value in values.items():
            if name not in actions:
                there = self.elsewhere.get(option_of(name))
                near = did_you_mean(name, actions)
                raise ConfigError(f"'{path}' has '{name}'. {there or f'There is no such option.{near}'}")
            action = actions[name]
            try:
                action.default = _from_file(value, action)
            except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
                raise ConfigError(f"'{path}' has {name}: {value!r}, and {error}.") from error
            action.required = False
            if not action.option_strings:
                action.nargs = "*" if action.nargs in ("+", "*") else "?"
            self.from_file.add(name)

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Returns the parsed arguments; `given` holds the names of the options among them.

        Raises:
            ConfigError: an option is not known or is repeated, or a value cannot be used.
        """
        words: list[str] = []
        given: set[str] = set(self.from_file)
        seen: set[str] = set()
        for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
            option, equals, value = word.partition("=")
            if option.startswith("--") and option != "--":
                option = _with_dashes(option)
                if option not in self._option_string_actions:
                    near = did_you_mean(option, self._option_string_actions)
                    message = f"Unknown option {option}.{near} See: {self.prog} --help"
                    raise ConfigError(self.elsewhere.get(option, message))
                name = option.removeprefix("--").replace("-", "_")
                if name in seen:
                    several = self._option_string_actions[option].nargs == "+"
                    advice = f"Give all values together: {option} A B" if several else "Give it once"
                    raise ConfigError(f"Got {option} more than once, and only the last would count. {advice}.")
                seen.add(name)
                given.add(name)  # tells what was asked for from what is a default
                word = f"{option}{equals}{value}"
            words.append(word)
            if word in self.flags and following.lower() not in (*_TRUE, *_FALSE, "none"):
                words.append("true")  # before argparse could take the next word as the value
        return self.parse_args(words, argparse.Namespace(given=given))

    def error(self, message: str) -> NoReturn:
        """Raises an error of ours, of which `main` shows one line."""
        raise ConfigError(f"{message}. See: {self.prog} --help")


class _Help(argparse._HelpAction):
    """Prints the help and ends: of essential options, where --help-all is for the others."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        has_two = any(action.dest == "help_all" for action in parser._actions)
        if has_two and self.dest != "help_all":
            for action in parser._actions:
                if action.option_strings and not is_essential(action.dest):
                    action.help = argparse.SUPPRESS
        places = [a.metavar or a.dest for a in parser._actions if not a.option_strings]
        parser.usage = " ".join(["%(prog)s", *(str(place).upper() for place in places), "[options]"])
        parser.print_help()
        parser.exit()


def config_parser(command: str, config: type[CommandArguments], **options: Any) -> Parser:
    """Returns the parser of a command that takes the fields of one config."""
    parser = Parser(command, " ".join((config.__doc__ or "").split()), **options)
    add_config(parser, config)
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
    otherwise = f"{name.removeprefix('Trainer')} only" if several else _OTHERS
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
            parser.flags.add(option_of(field.name))
        options["metavar"] = "" if default is False else _metavar(item)
        options["nargs"] = "+" if is_list or several else None
        group = parser.group(group_of(field.name, otherwise))
        group.add_argument(option_of(field.name), dest=field.name, required=not has_default, **options)


def read_config(namespace: argparse.Namespace, config: type[C]) -> C:
    """Returns the config that the parsed options describe."""
    return config.from_dict({name: value for name, value in vars(namespace).items() if name in field_types(config)})


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


def without(words: Sequence[str], options: Mapping[str, bool]) -> list[str]:
    """Returns a command's words without some options, which have a value or may have a truth."""
    kept: list[str] = []
    drops = False
    for before, word in zip(("", *words), words, strict=False):
        option, equals, _ = word.partition("=")
        is_value = drops and (options[_with_dashes(before)] or word.lower() in (*_TRUE, *_FALSE))
        drops = _with_dashes(option) in options and not equals and not is_value
        if not is_value and _with_dashes(option) not in options:
            kept.append(word)
    return kept


def write_line(text: str) -> None:
    """Writes a line of a result to standard output."""
    sys.stdout.write(f"{text}\n")


def write_result(value: Any, lines: Iterable[str] | None = None) -> None:
    """Writes a result to standard output: as lines, or with `--json` as one JSON value.

    Args:
        value: the result as plain values.
        lines: the same for people; by default the value, or each value of a list.
    """
    if as_json.get():
        write_line(json.dumps(value, indent=2, default=str))
        return
    for line in lines if lines is not None else value if isinstance(value, list) else [value]:
        write_line(str(line))


def option_of(field: str) -> str:
    """Returns the option of a field."""
    return f"--{field.replace('_', '-')}"


def _metavar(hint: Any) -> str:
    """Returns INT or FLOAT, choices as written, or NAME for what is an object in Python."""
    # that "none" is possible too, the help says where it matters
    name = type_name(hint).replace(" or None", "").replace(" ", "")
    return name if "|" in name else name.upper() if name in ("int", "float", "bool", "str") else "NAME"


def _with_dashes(option: str) -> str:
    """Returns an option that is written as in Python, as the parser knows it."""
    return option.replace("_", "-")


def _read(hint: Any, word: str) -> Any:
    """Returns what a word stands for in a type, for argparse."""
    try:
        return _value(word, hint)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{word!r} is not {type_name(hint)}") from error


def _value(word: str, hint: Any) -> Any:
    """Returns what a word stands for in a type; raises ValueError if it stands for nothing."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
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
    elif hint is bool and word.lower() in (*_TRUE, *_FALSE):
        return word.lower() in _TRUE
    elif hint is type(None) and word.lower() == "none":
        return None
    elif hint in (str, Any) or (origin is Literal and word in arguments):
        return word
    raise ValueError(word)


def _from_file(value: Any, action: argparse.Action) -> Any:
    """Returns a value of a run file as the parser would have read it."""
    if action.nargs not in ("+", "*"):
        return _one_from_file(value, action)
    values: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ValueError("it is empty")
    return [_one_from_file(each, action) for each in values]


def _one_from_file(value: Any, action: argparse.Action) -> Any:
    read: Callable[[str], Any] = action.type or str  # pyright: ignore[reportAssignmentType]
    if isinstance(value, Mapping):
        raise ValueError("a mapping is no value")
    if value is None:
        # a setting of words has no word for None, and may be None by default
        return None if action.default in (None, [None]) else read("none")
    if isinstance(value, (list, tuple)):
        return read(",".join(map(str, value)))
    return read(str(value).lower() if isinstance(value, bool) else str(value))


def _show(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)
