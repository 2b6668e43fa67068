"""The files of a store of contexts, and its index, which names them and says what they hold."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from dictionary_learning._border import short
from dictionary_learning._disk import size_and_checksum
from dictionary_learning._what_is import what_is
from dictionary_learning.errors import CheckpointError, DataError
from dictionary_learning.interop._safe import read_safetensors

INDEX, CONTEXTS, TOKENS, STATISTICS = "index.json", "contexts.safetensors", "tokens.json", "statistics.safetensors"
VERSION = 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_window(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, cast("list[Any]", value)))


_Fields = Mapping[str, Callable[[Any], bool]]
_INDEX: _Fields = {
    "request": _is_mapping,
    "n_tokens_read": _is_count,
    "n_contexts": _is_count,
    "ctx_len": _is_size,
    "shard_size": _is_size,
    "window": _is_window,
    "dictionaries": _is_list,
    "files": _is_mapping,
}
_REQUEST: _Fields = {"model": _is_mapping, "data": _is_mapping, "n_quantiles": _is_size}
_DICTIONARY: _Fields = {
    "name": _is_text,
    "n_tokens": _is_count,
    "class": _is_text,
    "dict_size": _is_size,
    "activation_dim": _is_size,
    "sites": _is_list,
}
_FILE: _Fields = {"size": _is_count, "sha256": _is_text}


def read_index(folder: Path) -> dict[str, Any]:
    """Returns the index of a store.

    Raises:
        DataError: There is none, it is damaged, or it is of a later version.
    """
    path = folder / INDEX
    if not path.is_file():
        told = what_is(folder) or "Write them with collect_contexts."
        raise DataError(f"'{folder}' holds no contexts, or unfinished ones. {told}")
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version: Any = index["format_version"]
        if version == VERSION:
            _check(index)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, error) from error
    if version != VERSION:
        raise DataError(f"'{path}' has format version {version}; this package reads {VERSION}. Upgrade the package.")
    return index


def shard_name(number: int) -> str:
    """Returns the name of a file of latents."""
    return f"latents_{number:05d}.safetensors"


def check_size(folder: Path, name: str, index: Mapping[str, Any]) -> None:
    """Raises DataError if a file has another size than was written."""
    path = folder / name
    size = path.stat().st_size if path.is_file() else None
    if size is not None and size != index["files"].get(name, {}).get("size"):
        raise damaged(path, f"its size is {size}, and another was written")


def check_files(folder: Path, index: Mapping[str, Any]) -> None:
    """Raises DataError if a file is missing, or differs from its checksum."""
    for name, written in index["files"].items():
        path = folder / name
        if not path.is_file() or size_and_checksum(path) != written:
            raise damaged(path, "it is not as it was written")


def read_tensors(folder: Path, name: str, index: Mapping[str, Any], wanted: tuple[str, ...]) -> dict[str, Tensor]:
    """Returns the tensors of a file, mapped and not loaded.

    Raises:
        DataError: It is missing or damaged.
    """
    check_size(folder, name, index)
    path = folder / name
    try:
        found = read_safetensors(path)
    except CheckpointError as error:
        raise damaged(path, cast(Any, error.__cause__) or error) from error
    if missing := set(wanted) - set(found):
        raise damaged(path, f"it lacks {', '.join(sorted(missing))}")
    return {name: found[name] for name in wanted}


def damaged(path: Path, why: object) -> DataError:
    """Returns the error for a file that cannot be read."""
    return DataError(f"'{path}' cannot be read ({why}); it is missing or damaged. Write the contexts again.")


def _check(index: dict[str, Any]) -> None:
    _check_fields(index, _INDEX)
    _check_fields(index["request"], _REQUEST)
    for number, entry in enumerate(index["dictionaries"]):
        _check_fields(entry, _DICTIONARY)
        if entry["folder"] != str(number):  # which a path elsewhere is not
            raise ValueError(f"folder is {short(entry['folder'])}")
        if not all(map(_is_text, entry["sites"])):
            raise ValueError(f"sites is {short(entry['sites'])}")
    for name, written in index["files"].items():
        _check_fields(written, _FILE)
        if not _is_inside(name):
            raise ValueError(f"a file is named {short(name)}")


def _check_fields(given: Any, fields: _Fields) -> None:
    for name, is_right in fields.items():
        if not is_right(given[name]):
            raise ValueError(f"{name} is {short(given[name])}")


def _is_inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts
