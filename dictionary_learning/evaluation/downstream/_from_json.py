"""Records from the JSON objects that they were written as."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from dictionary_learning.errors import DataError
from dictionary_learning.evaluation.downstream._records import DownstreamReport

R = TypeVar("R")


def downstream_of(document: Mapping[str, Any]) -> DownstreamReport:
    """Returns the section of a report, of this version or an older one.

    Raises:
        DataError: a later version of this package wrote it.
    """
    version = document.get("schema_version", 1)
    if version > DownstreamReport.SCHEMA:
        raise DataError(
            f"The section 'downstream' has schema_version={version}, and this version of the package reads up to "
            f"{DownstreamReport.SCHEMA}. Install a newer one."
        )
    return record_of(DownstreamReport, document)


def record_of(record: type[R], document: Mapping[str, Any]) -> R:
    """Returns a record of an object; entries that it has no field for are left out."""
    hints = typing.get_type_hints(record)
    fields = {field.name for field in dataclasses.fields(record)}  # pyright: ignore[reportArgumentType]
    return record(**{name: _value(hints[name], value) for name, value in document.items() if name in fields})


def _value(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(one for one in arguments if one is not type(None))
        return None if value is None else _value(inner, value)
    if hint is float:
        return float("nan") if value is None else float(value)
    if dataclasses.is_dataclass(hint):
        return record_of(typing.cast(type, hint), value)
    if origin is Mapping:
        return {key: _value(arguments[1], one) for key, one in value.items()}
    if origin is Sequence:
        return [_value(arguments[0], one) for one in value]
    return value
