"""A part of a mixture in words: the name of data, and settings of its own as name=value.

A value with spaces that holds something like name=value stands in quotes, so that a misspelt
setting is never taken for a part of the value before it.
"""

import json
import re
from typing import NamedTuple

from dictionary_learning.errors import ConfigError

_NAME = r"[A-Za-z_][\w-]*=(?!=)"
_SETTING = re.compile(rf"\s*({_NAME})")
_NEXT = re.compile(rf"\s+(?={_NAME})|\s*\Z")
"""What ends a value: the next setting, or the end."""
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|' + r"'[^']*'", re.DOTALL)


class Word(NamedTuple):
    """A value as it was written."""

    text: str
    """The value, without quotes."""
    is_quoted: bool = False
    """Whether it stood in quotes, and so is text in any case."""


def split_words(words: str) -> tuple[str, list[tuple[str, Word]]]:
    """Returns the name of data, which may have spaces, and the settings that follow it, in order.

    Raises:
        ConfigError: Something in quotes cannot be read.
    """
    words = words.strip()
    # data that begins like a setting is no data
    data, place = (Word(""), 0) if _SETTING.match(words) else _take(words, 0)
    found: list[tuple[str, Word]] = []
    while setting := _SETTING.match(words, place):
        value, place = _take(words, setting.end())
        found.append((setting[1][:-1].replace("-", "_"), value))
    return data.text, found


def as_word(text: str) -> str:
    """Returns a value as it is written, in quotes where it could be taken for something else."""
    is_odd = _QUOTED.match(text) or _NEXT.sub("", text) != text or text.lower() in ("", "none") or text[:1] in "\"'[ "
    return json.dumps(text, ensure_ascii=False) if is_odd else text


def _take(words: str, place: int) -> tuple[Word, int]:
    """Returns the value at a place, and where it ends."""
    quoted = _QUOTED.match(words, place)
    if quoted and _NEXT.match(words, quoted.end()):
        text = quoted[0]
        if text[0] == "'":
            return Word(text[1:-1], True), quoted.end()
        try:
            return Word(json.loads(text, strict=False), True), quoted.end()
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"Got {text} in mix, which cannot be read ({error}). Write a backslash as two, or use '...'."
            ) from None
    end = _NEXT.search(words, place)
    assert end is not None  # the end of the words
    return Word(words[place : end.start()]), end.start()
