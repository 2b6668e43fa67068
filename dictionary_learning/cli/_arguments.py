"""Command-line options made of configs: names, types, defaults and help come from their fields."""

import argparse
import dataclasses
import itertools
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, NoReturn, TypeVar

from dictionary_learning.config import BaseConfig, field_docs, field_types, type_name
from dictionary_learning.errors import ConfigError, did_you_mean

C = TypeVar("C", bound=BaseConfig)

IMPORT = "--import"
"""The option that every command has: a module to import before the others are read."""
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_LEAST = {
    "n_tokens": 1, "n_eval_tokens": 1, "n_fidelity_tokens": 0, "batch_size": 1, "ctx_len": 1, "n_ctxs": 1, "shard_size": 1,
    "refresh_batch_size": 1, "layer_stride": 1, "held_out_every": 2, "max_examples": 1, "log_steps": 1, "save_steps": 1,
}  # fmt: skip
"""The least value of every count that a command takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommandArguments(BaseConfig):
    """Base of the arguments of a command; a count below its least value is refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), _LEAST.get(field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if least is not None and number is not None and number < least:
                    raise ConfigError(f"Got {_option(field.name)} {number}; it must be at least {least}.")


class Parser(argparse.ArgumentParser):
    """Reads the options of one command, each by its whole name, with either kind of dash; errors are ours.

    Args:
        command: the command's name.
        description: what the command does.
        add_help: whether there is a --help.
    """

    def __init__(self, command: str, description: str | None = None, *, add_help: bool = True):
        about = (
            f"{IMPORT} MODULE imports a module first: trainers and nonlinearities that it registers are known by name."
        )
        prog = f"dictionary-learning {command}".strip()
        super().__init__(prog=prog, description=description, epilog=about, allow_abbrev=False, add_help=add_help)
        self.flags: set[str] = set()
        """Options that may stand without a value, which then is true."""
        self.elsewhere: dict[str, str] = {}
        """Options that this command has under other circumstances, and which those are."""

    def read(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Returns the parsed arguments; `given` holds the names of the options among them.

        Raises:
            ConfigError: an option is not known, or a value cannot be used.
        """
        words: list[str] = []
        given: set[str] = set()
        for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
            option, equals, value = word.partition("=")
            if option.startswith("--") and option != "--":
                option = option.replace("_", "-")  # as it is written in Python
                if option not in self._option_string_actions:
                    near = did_you_mean(option, self._option_string_actions)
                    raise ConfigError(
                        self.elsewhere.get(option) or f"Unknown option {option}.{near} See: {self.prog} --help"
                    )
                # `given` tells what was asked for from what is a default
                given.add(option.removeprefix("--").replace("-", "_"))
                word = f"{option}{equals}{value}"
            words.append(word)
            if word in self.flags and following.lower() not in (*_TRUE, *_FALSE, "none"):
                words.append("true")  # before argparse could take the next word as the value
        namespace = self.parse_args(words)
        namespace.given = given
        return namespace

    def error(self, message: str) -> NoReturn:
        """Raises an error of ours, of which `main` shows one line."""
        raise ConfigError(f"{message}. See: {self.prog} --help")


def config_parser(
    command: str, about: str, config: type[C], run: Callable[[C], object], positional: Collection[str] = ()
) -> Parser:
    """Returns the parser of a command that takes the fields of one config."""
    parser = Parser(command, about)
    add_config(parser, config, positional=positional)
    parser.set_defaults(run=lambda namespace: run(read_config(namespace, config)))
    return parser


def add_config(
    parser: Parser,
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
        defaults: a config whose values replace the defaults of the fields.
    """
    name = config.__qualname__.replace(".Config", "")
    group = parser.add_argument_group(f"{name} options" if several else "options of the run")
    docs, hints = field_docs(config), field_types(config)
    for field in dataclasses.fields(config):
        if field.name in exclude:
            continue
        hint = hints[field.name]
        # with several values, a list is one word with commas
        is_list = typing.get_origin(hint) is tuple and not several
        item = typing.get_args(hint)[0] if is_list else hint
        has_default = field.default is not dataclasses.MISSING
        options: dict[str, Any] = {"type": _reader(item), "help": docs.get(field.name, "").replace("%", "%%")}
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
        if bool in (item, *typing.get_args(item)):
            parser.flags.add(_option(field.name))
        # as INT or FLOAT; that "none" is possible too, the help says where it matters
        options["metavar"] = type_name(item).replace(" or None", "").upper().replace(" ", "")
        group.add_argument(_option(field.name), dest=field.name, required=not has_default, **options)


def read_config(namespace: argparse.Namespace, config: type[C]) -> C:
    """Returns the config that the parsed options describe."""
    names = [f.name for f in dataclasses.fields(config)]
    return config.from_dict({name: value for name, value in vars(namespace).items() if name in names})


def read_configs(namespace: argparse.Namespace, config: type[C], exclude: Collection[str] = ()) -> list[C]:
    """Returns a config for each combination of the values of its options."""
    names = [f.name for f in dataclasses.fields(config) if f.name not in exclude]
    values = [getattr(namespace, name) for name in names]
    return [config.from_dict(dict(zip(names, chosen, strict=True))) for chosen in itertools.product(*values)]


def write_line(text: str) -> None:
    """Writes a result to standard output."""
    sys.stdout.write(f"{text}\n")


def _option(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _reader(hint: Any) -> Callable[[str], Any]:
    """Returns a function that reads a value of a type from a word."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    options = arguments if origin in (typing.Union, types.UnionType) else (hint,)

    def read(word: str) -> Any:
        for option in options:
            for value in _readings(word, option):
                return value
        raise argparse.ArgumentTypeError(f"{word!r} is not {type_name(hint)}")

    return read


def _readings(word: str, option: Any) -> Iterator[Any]:
    """Yields the value of a type that a word stands for, if it stands for any."""
    origin, arguments = typing.get_origin(option), typing.get_args(option)
    if option in (None, type(None)):
        if word.lower() == "none":
            yield None
    elif option is bool:
        if word.lower() in (*_TRUE, *_FALSE):
            yield word.lower() in _TRUE
    elif option in (int, float):
        for read in (int, float):
            try:
                number = read(word)
            except ValueError:
                continue
            if option is float or number == number // 1:  # an int may be written as 1e6
                yield option(number)
    elif origin is tuple:
        item = _reader(arguments[0])
        yield tuple(item(part) for part in word.split(","))
    elif option in (str, Any) or (origin is Literal and word in arguments):
        yield word


def _show(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)
