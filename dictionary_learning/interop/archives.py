"""`.pt` files: what `torch.save` wrote, read without unpickling.

The archive holds a pickle, which says what there is, and the bytes of each tensor. The pickle is read as data (`pickles`), and the
tensors are made of the bytes, after checking that what is claimed is there. A file that would need code of any package to be
understood is refused, or its objects are left as notes of what they were: more is not needed, and `torch.load` is not called.
"""

import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop.pickles import Inert, Named, Stored, read_pickle
from dictionary_learning.interop.safe import READ_ERRORS, checked_members, damaged

MOST_PICKLE = 32 << 20
"""Bytes of the pickle in an archive: without the tensors, a few thousand."""
_DEEPEST = 20
"""How deep dictionaries and lists may stand in each other."""
_MOST_OBJECTS = 200_000
"""Values that a file may hold; those of an optimizer's state are a few thousand."""
_CHUNK = 16 << 20
"""Bytes that are read at once."""
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_REBUILT = {Named("torch._utils", "_rebuild_tensor_v2"), Named("torch._utils", "_rebuild_tensor")}
_PARAMETERS = {Named("torch._utils", "_rebuild_parameter")}


def read_pt(path: Path) -> Any:
    """Returns what is in a `.pt` file: dictionaries, lists, scalars and tensors on the CPU; objects of classes are `Inert`.

    Raises:
        CheckpointError: it is no archive of `torch.save`, is damaged, or claims more than it holds.
    """
    return _opened(path, lambda archive: archive.value())


def read_keys(path: Path) -> frozenset[str]:
    """Returns the names at the top of a `.pt` file, without reading tensors.

    Raises:
        CheckpointError: as for `read_pt`.
    """
    said = _opened(path, lambda archive: archive.said())
    return frozenset(key for key in said if isinstance(key, str)) if isinstance(said, dict) else frozenset()


def _opened(path: Path, use: Callable[["_Archive"], Any]) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return use(_Archive(path, archive))
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"'{path}' is no archive as torch.save has written since 1.6 ({error}); it may be cut off, or older. Get it again, or "
            "load it where you trust it and save it again."
        ) from error
    except (NotImplementedError, MemoryError, RuntimeError, zlib.error, *READ_ERRORS) as error:
        raise damaged(path, error) from error


class _Archive:
    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self.archive = path, archive
        self.members = {member.filename: member for member in checked_members(path, archive)}
        pickles = [name for name in self.members if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise damaged(path, "it does not hold one data.pkl")
        self.prefix = pickles[0].removesuffix("data.pkl")
        self._storages: dict[str, Tensor] = {}
        self._n_objects = 0

    def value(self) -> Any:
        """Returns all that the file holds."""
        return self._resolved(self.said(), 0)

    def said(self) -> Any:
        """Returns what the pickle says."""
        if self._bytes("byteorder", b"little") != b"little":
            raise CheckpointError(
                f"'{self.path}' was written by a machine of another byte order. Save it on a usual one."
            )
        if self.members[f"{self.prefix}data.pkl"].file_size > MOST_PICKLE:
            raise CheckpointError(f"'{self.path}' has a pickle of more than {MOST_PICKLE} bytes. It is no dictionary.")
        try:
            return read_pickle(self._bytes("data.pkl"))
        except CheckpointError as error:
            raise CheckpointError(f"'{self.path}' cannot be read: {error} Get it or save it again.") from error

    def _bytes(self, name: str, default: bytes | None = None) -> bytes:
        member = self.members.get(self.prefix + name)
        if member is None:
            if default is not None:
                return default
            raise damaged(self.path, f"it has no {name}")
        return self.archive.read(member)

    def _resolved(self, said: Any, depth: int) -> Any:
        """Returns what was said with tensors in the place of what stands for them."""
        self._n_objects += 1
        if depth > _DEEPEST or self._n_objects > _MOST_OBJECTS:
            raise CheckpointError(
                f"'{self.path}' holds more, or deeper, than any checkpoint does. It is no dictionary."
            )
        if isinstance(said, dict):
            return {key: self._resolved(value, depth + 1) for key, value in said.items()}
        if isinstance(said, (list, tuple)) and not isinstance(said, (Named, Stored)):
            return [self._resolved(value, depth + 1) for value in said]
        if isinstance(said, Inert) and said.function in _REBUILT:
            return self._tensor(*said.arguments[:4])
        if isinstance(said, Inert) and said.function in _PARAMETERS:
            return self._resolved(said.arguments[0], depth + 1)
        if isinstance(said, Inert):
            said.state = self._resolved(said.state, depth + 1)
        return said

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
        if not isinstance(storage, Stored):
            raise damaged(self.path, "a tensor has no storage")
        values = self._storage(*storage.reference)
        if not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *stride)) or len(shape) != len(stride):
            raise damaged(
                self.path, f"a tensor has the shape {shape!r}, the strides {stride!r} and the offset {offset!r}"
            )
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        n = math.prod(shape)
        # no element twice: a stride of zero makes a giant of one number
        if n and (last >= values.numel() or n > values.numel()):
            raise damaged(
                self.path, f"a tensor of shape {tuple(shape)} claims more than the {values.numel()} numbers stored"
            )
        return values.as_strided(shape, stride, offset) if n else values.new_zeros(shape)

    def _storage(self, kind: Any, storage_type: Any, key: Any, location: Any, n: Any, *_: Any) -> Tensor:
        dtype = _DTYPES.get(storage_type.name) if isinstance(storage_type, Named) else None
        if kind != "storage" or dtype is None or not isinstance(n, int):
            raise CheckpointError(
                f"'{self.path}' stores a tensor as {getattr(storage_type, 'name', storage_type)}; {', '.join(_DTYPES)} are read."
            )
        name = f"data/{key}"
        if name not in self._storages:
            self._storages[name] = self._values(name, dtype, n)
        elif self._storages[name].dtype != dtype:
            raise damaged(self.path, f"{name} is claimed in two dtypes")
        return self._storages[name]

    def _values(self, name: str, dtype: torch.dtype, n: int) -> Tensor:
        member = self.members.get(self.prefix + name)
        if member is None or member.file_size != n * dtype.itemsize:
            there = "nothing" if member is None else f"{member.file_size} bytes"
            raise damaged(self.path, f"{name} is {there}, and {n} of {dtype} were claimed")
        data = torch.empty(member.file_size, dtype=torch.uint8)
        values, at = data.numpy(), 0
        with self.archive.open(member) as file:
            while chunk := file.read(_CHUNK):
                values[at : at + len(chunk)] = np.frombuffer(chunk, np.uint8)
                at += len(chunk)
        if at != len(values):
            raise damaged(self.path, f"{name} ends early")
        return data.view(dtype)
