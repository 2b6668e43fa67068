"""Commands that messages and pages print, whose words a shell reads as they are meant."""

import os
import shlex
from collections.abc import Sequence


def shown_command(words: Sequence[str]) -> str:
    """Returns a command of this package as it is typed."""
    return shlex.join(["dictionary-learning", *words])


def place(path: str | os.PathLike[str]) -> str:
    """Returns a path as a word that is no option: "./-run" for "-run"."""
    word = os.fspath(path)
    return os.path.join(".", word) if word.startswith("-") else word


def option(name: str, *values: object) -> list[str]:
    """Returns an option with its values; one that stands alone may begin with a dash."""
    words = [str(value) for value in values]
    return [f"{name}={words[0]}"] if len(words) == 1 and words[0].startswith("-") else [name, *words]
