"""The parser of one command: whole names, errors of ours, values of a run file, and its help."""

import argparse
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

from dictionary_learning.cli._groups import TITLES, group_of
from dictionary_learning.errors import ConfigError, did_you_mean

CONFIG = "--config"
"""The option that names a run file."""
IMPORT = "--import"
"""The option that every command has: a module to import before the others are read."""
QUIET = "--quiet"
"""The option that every command has: only warnings, errors and results are written."""
JSON = "--json"
"""The option that every command has: results are JSON."""
TRACEBACK = "--traceback"
"""The option that every command has: shows where an error came from."""
OTHERS = "options"
"""The group of options that stand in no other."""
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


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
        self.flags: dict[str, Collection[str]] = {}
        """Options that may stand without a value, which then is true; and words that are values."""
        self.elsewhere: dict[str, str] = {}
        """Options that this command has under other circumstances, and which those are."""
        self.aliases: dict[str, str] = {}
        """Names that other commands have for options of this one, by field."""
        self.shown: set[str] = set()
        """Where --help-all is for the others, the fields whose options --help shows."""
        self.from_file: set[str] = set()
        """The options that a run file gives."""
        if has_help:
            self.add_argument("-h", "--help", action=_Help, help="Shows this.")
        for title in TITLES if has_help else ():
            self.group(title)
        for parent in parents:
            for action in parent._actions:
                self.group(group_of(action.dest, OTHERS))._add_action(action)

    def group(self, title: str) -> Any:
        """Returns the group of options of a title."""
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        return self._groups[title]

    def show_only(self, chosen: Collection[str]) -> None:
        """Adds `--help-all`, without which --help shows only some options, by field."""
        self.shown = {*chosen, "help", "help_all"}
        n_others = sum(action.dest not in self.shown for action in self._actions if action.option_strings)
        self.add_argument("--help-all", action=_Help, help=f"Shows all {n_others} other options too.")

    def take(self, values: Mapping[str, Any], path: str) -> None:
        """Takes what a run file gives; what the command gives itself goes before it.

        Raises:
            ConfigError: A name is no option, or a value cannot be one of it.
        """
        actions = {action.dest: action for action in self._actions if action.dest not in ("help", "help_all")}
        for told, value in values.items():
            name = self.aliases.get(told, told)
            if name != told and name in values:
                raise ConfigError(
                    f"'{path}' has '{told}' and '{name}', which are names of one option. Give one of them."
                )
            if name not in actions:
                there = self.elsewhere.get(option_of(name))
                near = did_you_mean(name, actions)
                raise ConfigError(f"'{path}' has '{name}'. {there or f'There is no such option.{near}'}")
            action = actions[name]
            if value is None and _is_not_given(action):
                continue
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
        seen: dict[str, str] = {}
        for word, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
            option, equals, value = word.partition("=")
            if option.startswith("--") and option != "--":
                option = _with_dashes(option)
                told, field = option, option.removeprefix("--").replace("-", "_")
                option = option_of(self.aliases.get(field, field))
                if option not in self._option_string_actions:
                    near = did_you_mean(option, self._option_string_actions)
                    message = f"Unknown option {option}.{near} See: {self.prog} --help"
                    raise ConfigError(self.elsewhere.get(option, message))
                name = option.removeprefix("--").replace("-", "_")
                if seen.get(name, told) != told:
                    raise ConfigError(f"Got {seen[name]} and {told}, which are names of one option. Give one of them.")
                if name in seen:
                    several = self._option_string_actions[option].nargs == "+"
                    advice = f"Give all values together: {option} A B" if several else "Give it once"
                    raise ConfigError(f"Got {option} more than once, and only the last would count. {advice}.")
                seen[name] = told
                given.add(name)  # tells what was asked for from what is a default
                word = f"{option}{equals}{value}"
            words.append(word)
            if word in self.flags and following.lower() not in (*TRUE, *FALSE, "none", *self.flags[word]):
                words.append("true")  # before argparse could take the next word as the value
        return self.parse_args(words, argparse.Namespace(given=given))

    def error(self, message: str) -> NoReturn:
        """Raises an error of ours, of which `main` shows one line."""
        raise ConfigError(f"{message}. See: {self.prog} --help")


class _Help(argparse._HelpAction):
    """Prints the help and ends: of some options, where --help-all is for the others."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        shown = getattr(parser, "shown", set[str]())
        if shown and self.dest != "help_all":
            for action in parser._actions:
                if action.option_strings and action.dest not in shown:
                    action.help = argparse.SUPPRESS
        places = [a.metavar or a.dest for a in parser._actions if not a.option_strings]
        parser.usage = " ".join(["%(prog)s", *(str(place).upper() for place in places), "[options]"])
        parser.print_help()
        parser.exit()


def without(words: Sequence[str], options: Mapping[str, bool]) -> list[str]:
    """Returns a command's words without some options, which have a value or may have a truth."""
    kept: list[str] = []
    drops = False
    for before, word in zip(("", *words), words, strict=False):
        option, equals, _ = word.partition("=")
        is_value = drops and (options[_with_dashes(before)] or word.lower() in (*TRUE, *FALSE))
        drops = _with_dashes(option) in options and not equals and not is_value
        if not is_value and _with_dashes(option) not in options:
            kept.append(word)
    return kept


def modules_in(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the modules that a command imports first, and its other words."""
    imports = Parser("", add_help=False)
    imports.add_argument(IMPORT, action="append", default=[], dest="modules")
    found, others = imports.parse_known_args(list(words))
    return found.modules, others


def option_of(field: str) -> str:
    """Returns the option of a field."""
    return f"--{field.replace('_', '-')}"


def _with_dashes(option: str) -> str:
    """Returns an option that is written as in Python, as the parser knows it."""
    return option.replace("_", "-")


def _is_not_given(action: argparse.Action) -> bool:
    """Returns whether null says nothing: None is the default, or it stands for a list."""
    one = action.default[0] if isinstance(action.default, list) and len(action.default) == 1 else action.default
    return one is None or isinstance(action.default, tuple)


def _from_file(value: Any, action: argparse.Action) -> Any:
    """Returns a value of a run file as the parser would have read it."""
    if action.nargs not in ("+", "*"):
        if isinstance(value, (list, tuple)):
            more = "; further data are the option mix" if action.dest == "data" else ""
            raise ValueError(f"it takes one value, and no list{more}")
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
    if isinstance(value, (list, tuple)) and isinstance(action.default, tuple):
        raise ValueError("a list in a list is no value")
    if isinstance(value, (list, tuple)):
        return read(",".join(map(str, value)))
    return read(str(value).lower() if isinstance(value, bool) else str(value))
