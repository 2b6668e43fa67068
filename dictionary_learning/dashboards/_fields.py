"""Fields of a request, of which nothing is taken on trust."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from dictionary_learning._border import short
from dictionary_learning.errors import ConfigError


class Fields:
    """The fields of a JSON object; each is read by its name, type and range.

    Raises:
        ConfigError: On reading, if a field is missing or is something else.
    """

    def __init__(self, given: Any):
        if not isinstance(given, Mapping):
            raise ConfigError(f"Got {short(given)}; a request is a JSON object.")
        self._left: dict[Any, Any] = dict(cast(Mapping[Any, Any], given))

    @classmethod
    def parse(cls, body: bytes) -> "Fields":
        """Reads the body of a request."""
        try:
            return cls(json.loads(body))
        except (ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"The request is no JSON ({error}). Send an object.") from None

    def text(self, name: str, longest: int) -> str:
        """Returns a text that is not empty."""
        value = self._left.pop(name, None)
        if not isinstance(value, str) or not value or len(value) > longest:
            raise ConfigError(f"Got {name}={short(value)}; it must be a text of 1 to {longest:,} characters.")
        return value

    def integer(self, name: str, least: int, most: int, default: int | None = None) -> int:
        """Returns a whole number in a range."""
        value = self._left.pop(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(f"Got {name}={short(value)}; it must be a whole number from {least:,} to {most:,}.")
        return value

    def number(self, name: str, least: float, most: float, default: float | None = None) -> float:
        """Returns a finite number in a range."""
        value = self._left.pop(name, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not is_number or not least <= value <= most:
            raise ConfigError(f"Got {name}={short(value)}; it must be a number from {least:g} to {most:g}.")
        return float(value)

    def choice(self, name: str, known: Sequence[str]) -> str:
        """Returns one of several words."""
        value = self._left.pop(name, None)
        if value not in known:
            raise ConfigError(f"Got {name}={short(value)}; it must be one of {', '.join(known)}.")
        return value

    def integers(self, name: str, most: int) -> list[int]:
        """Returns a list of whole numbers, empty if it is left out."""
        value = self._left.pop(name, [])
        is_list = isinstance(value, list) and len(value) <= most
        if not is_list or not all(isinstance(i, int) and not isinstance(i, bool) for i in value):
            raise ConfigError(f"Got {name}={short(value)}; it must be a list of at most {most} whole numbers.")
        return value

    def parts(self, name: str, most: int) -> list["Fields"]:
        """Returns a list of objects, empty if it is left out."""
        value = self._left.pop(name, [])
        if not isinstance(value, list) or len(value) > most:
            raise ConfigError(f"Got {name}={short(value)}; it must be a list of at most {most} objects.")
        return [Fields(one) for one in value]

    def end(self) -> None:
        """Checks that no field is left."""
        if self._left:
            raise ConfigError(f"Got an unknown field {short(next(iter(self._left)))}. Leave it out.")
