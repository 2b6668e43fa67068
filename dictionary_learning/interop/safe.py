"""Readers that run nothing, and take no more memory than the file they read deserves.

JSON and YAML are bounded in size, safetensors in its header, archives by what they claim to hold. Whatever is wrong with a file is
a CheckpointError; nothing of a file is ever executed. `.pt` files are read in `archives`.
"""

import io
import json
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dictionary_learning.errors import CheckpointError

MOST_TEXT = 4 << 20
"""Bytes of a settings file; known ones have a few thousand."""
MOST_YAML = 64 << 10
"""The same for YAML, whose reader is slow."""
MOST_HEADER = 4 << 20
"""Bytes of a safetensors header; a dictionary has a few tensors, and a training state a few hundred."""
MOST_INFLATED = 20
"""How many times its size an archive may hold: weights cannot be compressed, zeros can."""
DEEPEST_YAML = 20
"""How deep settings may stand in each other; its reader takes the square of that."""
_ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
READ_ERRORS = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError, EOFError)
"""What readers raise for files that are damaged."""


def damaged(path: Path, why: object) -> CheckpointError:
    """Returns the error for a file that cannot be read."""
    return CheckpointError(f"'{path}' cannot be read ({why}); it may be cut off or damaged. Get it or save it again.")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        CheckpointError: it is no JSON, no object, or too long.
    """
    text = _text(path, MOST_TEXT)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is not JSON ({error}). Get it or save it again.") from error
    return _object(found, path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file, of plain values and without references.

    Raises:
        CheckpointError: it is no such file.
    """
    text = _text(path, MOST_YAML)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_YAML:
                raise CheckpointError(f"'{path}' has settings in settings, {depth} deep. It is no dictionary's.")
            if isinstance(event, yaml.AliasEvent):
                raise CheckpointError(f"'{path}' refers to parts of itself; settings are plain values. Write them out.")
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, *READ_ERRORS) as error:
        raise CheckpointError(f"'{path}' is not YAML ({error}). Get it or save it again.") from error
    return _object(found, path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file.

    Raises:
        CheckpointError: the header is longer than a dictionary's, or the file does not hold what it says.
    """
    check_header(path)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (SafetensorError, MemoryError, RuntimeError, *READ_ERRORS) as error:
        raise damaged(path, error) from error


def check_header(path: Path) -> dict[str, Any]:
    """Returns the header of a safetensors file, after checking that it is short and describes the bytes that are there.

    Raises:
        CheckpointError: it is not.
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 0 < length <= size - 8:
                raise damaged(path, f"its header claims {length} bytes, and the file has {size}")
            if length > MOST_HEADER:
                raise CheckpointError(
                    f"'{path}' has a header of {length} bytes; at most {MOST_HEADER} are read. It is no dictionary."
                )
            header = json.loads(file.read(length))
        _check_entries(path, header, size - 8 - length)
    except (RecursionError, *READ_ERRORS) as error:
        raise damaged(path, error) from error
    return header


def _check_entries(path: Path, header: Any, n_bytes: int) -> None:
    if not isinstance(header, dict):
        raise damaged(path, "its header is no object")
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, (start, stop), dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
        if dtype not in _ITEM:
            raise CheckpointError(f"'{path}' holds {name} as {dtype}; {', '.join(_ITEM)} are read. Convert it.")
        n = claimed(path, name, shape, _ITEM[dtype], n_bytes)
        if not (0 <= start <= stop <= n_bytes and stop - start == n):
            raise damaged(path, f"{name} claims {n} bytes, of which {stop - start} are there")


def claimed(path: Path, name: str, shape: Any, item: int, n_bytes: int) -> int:
    """Returns how many bytes a tensor claims to have.

    Raises:
        CheckpointError: the shape is none, or claims more bytes than there are.
    """
    if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in shape):
        raise damaged(path, f"{name} has the shape {shape!r}")
    n = math.prod(shape) * item
    if n > n_bytes:
        raise damaged(path, f"{name} has the shape {tuple(shape)}, {n} bytes, and the file holds {n_bytes}")
    return n


def read_npz(path: Path) -> dict[str, Tensor]:
    """Returns the arrays of an `.npz` file; objects are refused.

    Raises:
        CheckpointError: the file is damaged, or claims more than it may.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in checked_members(path, archive):
                name = info.filename.removesuffix(".npy")
                found[name] = _array(path, name, archive.read(info))
    except (zipfile.BadZipFile, NotImplementedError, MemoryError, RuntimeError, zlib.error, *READ_ERRORS) as error:
        raise damaged(path, error) from error
    return found


def _array(path: Path, name: str, data: bytes) -> Tensor:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = read_header[version](file)
    if dtype.hasobject or dtype.kind not in "fiub" or dtype.itemsize not in (1, 2, 4, 8):
        raise CheckpointError(f"'{path}' holds {name} as {dtype}; numbers are read, and no objects. Convert it.")
    n = claimed(path, name, shape, dtype.itemsize, len(data) - file.tell())
    array = np.frombuffer(data, dtype, n // dtype.itemsize, file.tell())
    array = array.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))
    return torch.from_numpy(array)


def checked_members(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Returns the files in an archive, after checking what they claim to hold, and that no name is there twice.

    Raises:
        CheckpointError: they claim more than the archive's size allows.
    """
    members, size = archive.infolist(), os.path.getsize(path)
    total = sum(member.file_size for member in members)
    if total > MOST_INFLATED * size:
        raise CheckpointError(
            f"'{path}' has {size} bytes and claims to hold {total}; weights cannot be compressed so far. It is no dictionary."
        )
    if len({member.filename for member in members}) < len(members):
        raise damaged(path, "it holds a name twice")
    return members


def _text(path: Path, most: int) -> str:
    try:
        if os.path.getsize(path) > most:
            raise CheckpointError(f"'{path}' has more than {most} bytes; settings have less. Give another file.")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"'{path}' is not text in UTF-8 ({error}). Get it or save it again.") from error
    except OSError as error:
        raise damaged(path, error) from error


def _object(found: Any, path: Path) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise CheckpointError(f"'{path}' holds a {type(found).__name__}; settings by name are needed. Get it again.")
    return {str(key): value for key, value in found.items()}
