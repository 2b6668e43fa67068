"""What judges answer, read strictly: it is text of strangers, and is never evaluated."""

import json
import re

LONGEST = 400
"""Characters of an explanation."""
_TAG = re.compile(r"^\s*\**EXPLANATION:\**[ \t]*(\S.*)$", re.MULTILINE)
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)
_NUMBER = r"-?\d{1,3}(?:\.\d{1,12})?"
_LIST = re.compile(rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER})*\s*\]")
_LONGEST_ANSWER = 100_000


def parse_explanation(answer: str) -> str | None:
    """Returns the phrase of the last line that begins with EXPLANATION:, or None."""
    found = _TAG.findall(answer[-_LONGEST_ANSWER:])
    if not found:
        return None
    # characters that change what is around them, and halves of pairs that no file can hold
    text = "".join(character if character.isprintable() else " " for character in found[-1])
    text = " ".join(text.encode("utf-8", "replace").decode().split()).strip("*").strip()
    if len(text) > LONGEST:
        text = text[: LONGEST - 1].rstrip() + "…"
    return text or None


def parse_numbers(answer: str, n: int, *, low: float, high: float, whole: bool) -> list[float] | None:
    """Returns the only list of numbers in an answer, if it has n of them and all are in range."""
    answer = answer.strip()[-_LONGEST_ANSWER:]
    fenced = _FENCE.match(answer)
    lists = set(_LIST.findall(fenced.group(1) if fenced else answer))
    if len(lists) != 1:
        return None
    numbers: list[float] = [float(part) for part in json.loads(_without_zeros(lists.pop()))]
    right = len(numbers) == n and all(low <= number <= high for number in numbers)
    return numbers if right and not (whole and any(number != int(number) for number in numbers)) else None


def _without_zeros(text: str) -> str:
    """Returns a list of numbers without leading zeros, which JSON does not have."""
    return re.sub(r"(?<![\d.])0+(?=\d)", "", text)
