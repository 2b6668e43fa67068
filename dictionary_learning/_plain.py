"""Values as plain data, which JSON can hold."""

import argparse
import dataclasses
import datetime
import enum
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, cast

import numpy as np
import torch

from dictionary_learning._secrets import HIDDEN, is_secret, without_secrets
from dictionary_learning.errors import ConfigError

MAX_ELEMENTS = 4096
"""Elements of a tensor or array that a config may hold; a larger one is data and not a setting."""
_MOST_NAMED = 6
"""Things that a message names one by one."""
_MAX_DEPTH = 30
"""Levels of nesting; a config that is deeper contains itself."""


def to_plain(value: Any, name: str = "config", depth: int = 0) -> Any:
    """Returns a value as plain data that JSON can hold.

    Paths, dtypes, devices, sites, enum members and classes become strings. NumPy numbers, arrays
    and tensors become numbers and lists, tuples and sets become lists, dataclasses and namespaces
    become mappings. Passwords and tokens are not stored: by name, as `token=...` or in an address.

    Args:
        value: the value.
        name: how an error refers to the value.
        depth: how many levels of a config the value is inside.

    Raises:
        ConfigError: a part of the value has no plain form; the message names the part.
    """
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{name} is nested deeper than {_MAX_DEPTH} levels. Store a flat mapping of settings.")
    kind = cast("type[Any]", type(value))  # so that `value` stays Any for the type checker
    if issubclass(kind, enum.Enum):
        return value.name  # before numbers: an IntEnum is an int, too
    if value is None:
        return None
    if issubclass(kind, str):
        return without_secrets(str(value))
    for plain in (bool, int, float):
        if issubclass(kind, plain):
            return plain(value)  # np.float64 is a float, and some writers refuse it
    if hasattr(kind, "__fspath__"):
        return os.fsdecode(value)
    if issubclass(kind, (torch.dtype, torch.device, np.dtype, datetime.date)):
        return str(value).removeprefix("torch.")
    if issubclass(kind, type):
        return value.__name__
    if issubclass(kind, (torch.Tensor, np.ndarray, np.generic)):
        size = value.numel() if issubclass(kind, torch.Tensor) else value.size
        if size > MAX_ELEMENTS:
            raise ConfigError(
                f"{name} is a {kind.__name__} of {size} elements; a config holds at most {MAX_ELEMENTS}. Store the "
                "path of a file instead."
            )
        return to_plain(value.tolist(), name, depth + 1)
    if dataclasses.is_dataclass(kind):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(kind)}
    elif issubclass(kind, argparse.Namespace):
        value = cast(Any, vars(value))
    if isinstance(value, Mapping):
        parts = {str(to_plain(k, f"a key of {name}", depth + 1)): v for k, v in cast(Mapping[Any, Any], value).items()}
        return {
            key: HIDDEN if isinstance(part, str) and is_secret(key) else to_plain(part, f"{name}[{key!r}]", depth + 1)
            for key, part in parts.items()
        }
    has_text = kind.__str__ is not object.__str__
    if has_text and issubclass(kind, tuple):
        return str(value)  # a named tuple with a text form, such as Site
    if issubclass(kind, Set):
        value = sorted(cast("Set[Any]", value), key=str)  # equal configs must give equal files
    if issubclass(kind, (list, tuple, Set)):
        return [to_plain(part, f"{name}[{n}]", depth + 1) for n, part in enumerate(cast("Sequence[Any]", value))]
    raise ConfigError(
        f"{name} is a {kind.__module__}.{kind.__qualname__}, which JSON cannot hold. A config holds numbers, strings, "
        "paths, lists, mappings and dataclasses of these. Convert the value, or leave it out."
    )


def as_bytes(n_bytes: float) -> str:
    """Returns a number of bytes in words, as "0.3 GB" or "25.2 MB"."""
    gigabytes = n_bytes / 1e9
    return f"{gigabytes:,.3g} GB" if gigabytes >= 0.1 else f"{n_bytes / 1e6:.3g} MB"


def counted(n: int, one: str, several: str | None = None) -> str:
    """Returns a number with its noun: "1 run", "2,000 runs"."""
    return f"{n:,} {one if n == 1 else several or one + 's'}"


def in_few(words: Iterable[object], nouns: str) -> str:
    """Returns words one after another; of many, their number, the first and the last."""
    shown = [str(word) for word in words]
    return ", ".join(shown) if len(shown) <= _MOST_NAMED else f"{len(shown)} {nouns}, {shown[0]} to {shown[-1]}"


def as_duration(seconds: float) -> str:
    """Returns a time in words, as "2 h 5 min", "3 min 20 s" or "12.3 s"."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes_of_hour = divmod(minutes, 60)
    if hours:
        return f"{hours:.0f} h {minutes_of_hour:.0f} min"
    return f"{minutes:.0f} min {rest:.0f} s" if minutes else f"{seconds:.1f} s"


def differences(old: Any, new: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    """Returns where two trees of JSON values differ: the path of keys, and both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: list[tuple[str, Any, Any]] = []
        for key in dict.fromkeys([*old, *new]):
            inner = f"{place}.{key}" if place else str(key)
            found += differences(old.get(key), new.get(key), inner)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [found for index, pair in pairs for found in differences(*pair, f"{place}[{index}]")]
    return [] if old == new else [(place, old, new)]
