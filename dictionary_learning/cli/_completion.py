"""`dictionary-learning completion`: the script by which a shell completes commands and options."""

import argparse
import dataclasses
from typing import ClassVar, Literal

from dictionary_learning.cli._arguments import CommandArguments
from dictionary_learning.cli._output import write_line
from dictionary_learning.cli._parser import Parser


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionArguments(CommandArguments):
    """Prints the script by which a shell completes commands, options and their choices.

    That of bash goes into ~/.local/share/bash-completion/completions/dictionary-learning, that of
    zsh into a file _dictionary-learning in a folder of $fpath.
    """

    positional: ClassVar = ("shell",)
    shell: Literal["bash", "zsh", "tcsh"]
    """The shell: bash, zsh or tcsh."""

    def run(self) -> None:
        import shtab

        write_line(shtab.complete(_whole_parser(), self.shell))


def _whole_parser() -> argparse.ArgumentParser:
    """Returns one parser of all commands, with the options of every trainer."""
    from dictionary_learning.cli import COMMANDS, build_parser
    from dictionary_learning.trainers import TRAINERS

    whole = argparse.ArgumentParser(prog="dictionary-learning")
    commands = whole.add_subparsers(dest="command")
    for command, about in COMMANDS.items():
        own = commands.add_parser(command, help=about, add_help=False)
        methods = [["--trainer", name] for name in TRAINERS] if command == "train" else [[]]
        for words in methods:
            _add_actions(own, build_parser(command, words))
    return whole


def _add_actions(to: argparse.ArgumentParser, parser: Parser) -> None:
    for action in parser._actions:
        known = {option for each in to._actions for option in each.option_strings}
        places = {each.dest for each in to._actions if not each.option_strings}
        if not known & set(action.option_strings) and (action.option_strings or action.dest not in places):
            to._add_action(action)
