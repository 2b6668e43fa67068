"""Readers of untrusted files: nothing is executed, and memory stays in proportion to the file.

Whatever is wrong with a file is a CheckpointError. `.pt` files are read in `archives`.
"""

import contextlib
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dictionary_learning._hardware import in_large_pages
from dictionary_learning.errors import CheckpointError

MOST_TEXT = 4 << 20
"""Bytes of a JSON file; known ones have a few thousand."""
MOST_YAML = 64 << 10
"""Bytes of a YAML file, whose parser is slow."""
MOST_HEADER = 4 << 20
"""Bytes of a safetensors header; a dictionary has a few tensors, a training state a few hundred."""
MOST_INFLATED = 20
"""Size of an archive's content / size of the archive: weights cannot be compressed, zeros can."""
DEEPEST_YAML = 20
"""Levels of nesting in a YAML file; parsing takes the square of that."""
_LOCAL_HEADER = 30
"""Bytes before a member's name in a zip archive."""
_CHUNK = 1 << 18
"""Bytes of an array whose checksum is taken while they are still in the processor's cache."""
_READERS = 4
"""Threads that read an archive's arrays; reads and checksums do not hold the interpreter."""
READ_ERRORS = (
    *(OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, EOFError),
    *(NotImplementedError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error, SafetensorError),
)
"""Exceptions that the libraries raise for damaged files. RecursionError is a RuntimeError."""


def damaged(path: Path, why: object) -> CheckpointError:
    """Returns the error for a file that cannot be read."""
    return CheckpointError(f"'{path}' cannot be read ({why}); it may be cut off or damaged. Get it or save it again.")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file."""
    return _read_settings(path, "JSON", MOST_TEXT, json.loads)


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file of plain values."""

    def parse(text: str) -> Any:
        depth = 0
        # aliases can make a giant of a few lines, so events are checked before anything is built
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                raise CheckpointError(f"'{path}' nests settings more than {DEEPEST_YAML} deep. It is no dictionary's.")
            if isinstance(event, yaml.AliasEvent):
                raise CheckpointError(f"'{path}' refers to parts of itself; settings are plain values. Write them out.")
        return yaml.safe_load(text)  # builds plain values only

    return _read_settings(path, "YAML", MOST_YAML, parse)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file."""
    with open_safetensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[safe_open]:
    """Opens a safetensors file."""
    # the library checks that the header describes exactly the bytes of the file
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        # the library parses headers of up to 100 MB, which take a gigabyte in memory
        if MOST_HEADER < length <= os.path.getsize(path):
            raise CheckpointError(
                f"'{path}' has a header of {length} bytes; at most {MOST_HEADER} are read. It is no dictionary."
            )
        with safe_open(path, "pt") as opened:
            yield opened
    except READ_ERRORS as error:
        raise damaged(path, error) from error


def read_npz(path: Path) -> dict[str, Tensor]:
    """Returns the arrays of numbers in an `.npz` file."""
    try:
        with zipfile.ZipFile(path) as archive:
            # before np.load inflates anything
            members = {member.filename.removesuffix(".npy"): member for member in checked_members(path, archive)}
            with np.load(path, allow_pickle=False) as arrays:  # arrays of objects are pickles
                with ThreadPoolExecutor(_READERS) as threads:
                    read = {name: threads.submit(_stored_array, path, archive, members[name]) for name in arrays.files}
                found = {name: array.result() for name, array in read.items()}
                return {
                    name: _tensor(path, name, arrays[name] if array is None else array) for name, array in found.items()
                }
    except READ_ERRORS as error:
        raise damaged(path, error) from error


def checked_members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Returns the files in an archive."""
    members, size = archive.infolist(), os.path.getsize(path)
    total = sum(member.file_size for member in members)
    if total > MOST_INFLATED * size:
        raise CheckpointError(
            f"'{path}' has {size} bytes and claims to hold {total}; weights cannot be compressed so far. It is no "
            "dictionary."
        )
    if len({member.filename for member in members}) < len(members):
        raise damaged(path, "it holds a name twice")
    return members


def plain_name(name: str) -> str:
    """Returns the name of a tensor without what torch.compile adds."""
    return name.replace("_orig_mod.", "")


def _stored_array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray | None:
    """Returns an array that was stored as it is, read at once; None if it needs `np.load`."""
    if member.compress_type != zipfile.ZIP_STORED or not member.filename.endswith(".npy"):
        return None
    with archive.open(member) as inside:
        if np.lib.format.read_magic(inside) != (1, 0):
            return None
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(inside)
        start = inside.tell()
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or by_columns or start + size != member.file_size:
        return None
    place = in_large_pages(torch.empty(size, dtype=torch.uint8))  # where PyTorch keeps tensors
    array = place.numpy().view(dtype).reshape(shape)
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        lengths = struct.unpack("<26x2H", file.read(_LOCAL_HEADER))  # of the name and of other fields
        file.seek(sum(lengths), os.SEEK_CUR)
        checksum, done = zlib.crc32(file.read(start)), 0
        content = array.reshape(-1).view(np.uint8).data
        while done < size and (n := file.readinto(content[done : done + _CHUNK])):
            checksum = zlib.crc32(content[done : done + n], checksum)
            done += n
    if done < size or checksum != member.CRC:
        raise damaged(path, f"the checksum of {member.filename} is another")
    return array


def _tensor(path: Path, name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise CheckpointError(f"'{path}' holds {name} as {array.dtype}; numbers are read, and no objects. Convert it.")
    # PyTorch has one byte order, and arrays of its own
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["W"]))


def _read_settings(path: Path, language: str, most: int, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        if os.path.getsize(path) > most:
            raise CheckpointError(f"'{path}' has more than {most} bytes; settings have less. Give another file.")
        found = parse(path.read_bytes().decode("utf-8"))
    except (yaml.YAMLError, *READ_ERRORS) as error:
        raise CheckpointError(f"'{path}' is not {language}, or damaged ({error}). Get it or save it again.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"'{path}' holds a {type(found).__name__}; settings by name are needed. Get it again.")
    return {str(key): value for key, value in found.items()}
