"""Values as plain data, which JSON can hold."""

import argparse
import dataclasses
import datetime
import enum
import os
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import torch

from dictionary_learning.errors import ConfigError

MAX_ELEMENTS = 4096
"""Elements of a tensor or array that a config may hold; a larger one is data and not a setting."""
_MAX_DEPTH = 30
"""Levels of nesting; a config that is deeper contains itself."""


def to_plain(value: Any, name: str = "config") -> Any:
    """Returns a value as plain data that JSON can hold.

    Paths, dtypes, devices, sites, enum members and classes become strings. NumPy numbers, arrays
    and tensors become numbers and lists, tuples and sets become lists, dataclasses and namespaces
    become mappings.

    Args:
        value: the value.
        name: how an error refers to the value.

    Raises:
        ConfigError: a part of the value has no plain form; the message names the part.
    """
    return _convert(value, name, 0)


def _convert(value: Any, name: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ConfigError(f"{name} is nested deeper than {_MAX_DEPTH} levels. Store a flat mapping of settings.")
    if isinstance(value, enum.Enum):
        return value.name  # before numbers: an IntEnum is an int, too
    if value is None or isinstance(value, (bool, int, float, str)):
        return _number_or_text(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, (torch.dtype, torch.device, np.dtype, datetime.date)):
        return str(value).removeprefix("torch.")
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        size = value.numel() if isinstance(value, torch.Tensor) else value.size
        if size > MAX_ELEMENTS:
            raise ConfigError(
                f"{name} is a {type(value).__name__} of {size} elements; a config holds at most {MAX_ELEMENTS}. Store the path of a "
                "file instead."
            )
        return _convert(value.tolist(), name, depth + 1)
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {
            str(_convert(key, f"a key of {name}", depth + 1)): _convert(part, f"{name}[{key!r}]", depth + 1)
            for key, part in value.items()
        }
    if isinstance(value, Set):
        value = sorted(value, key=str)  # equal configs must give equal files
    if isinstance(value, tuple) and type(value).__str__ is not object.__str__:
        return str(value)  # a named tuple with a text form, such as Site
    if isinstance(value, (list, tuple)):
        return [_convert(part, f"{name}[{n}]", depth + 1) for n, part in enumerate(value)]
    raise ConfigError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which JSON cannot hold. A config holds numbers, "
        "strings, paths, lists, mappings and dataclasses of these. Convert the value, or leave it out."
    )


def _number_or_text(value: Any) -> Any:
    """Returns the value in the built-in type: np.float64 is a float, and some writers refuse it."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return None
