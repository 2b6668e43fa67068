"""`.pkl` and `.pkl.gz` files, as pickle writes tensors, read without executing anything of them.

A tensor's storage is pickled as bytes that `torch.save` wrote in its form before 1.6: five pickles
(a number, a version, the machine, the storage, its keys), and the numbers. All six pickles are read
as those of a `.pt` file are.
"""

import gzip
import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._archives import Archive, StorageNote, Unpickler
from dictionary_learning.interop._safe import READ_ERRORS, damaged

_LARGEST_RATIO, _ALWAYS = 50, 1 << 20
"""Bytes for each compressed one, beyond which a file is no dictionary; weights hardly compress."""
_N_PICKLES = 5


def read_pickle(path: Path) -> Any:
    """Returns the content of a pickle, with `Inert` in place of objects of unknown classes."""
    try:
        pickled = _Pickle(path, _content(path))
        return pickled.resolve(pickled.described)
    except (pickle.UnpicklingError, *READ_ERRORS) as error:
        raise damaged(path, error) from error


def _content(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    most = path.stat().st_size * _LARGEST_RATIO + _ALWAYS
    with gzip.open(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise CheckpointError(
            f"'{path}' is more than {_LARGEST_RATIO} times as large as its archive. It is no dictionary."
        )
    return data


class _Pickle(Archive):
    """A pickle whose tensors have their bytes inside."""

    def __init__(self, path: Path, data: bytes):  # pyright: ignore[reportMissingSuperCall]
        self.path, self.members, self.prefix = path, {}, ""
        self._storages: dict[str, Tensor] = {}
        self._n_objects = 0
        self.described: Any = self._load(io.BytesIO(data))

    def _load(self, stream: io.BytesIO) -> Any:
        """Returns what the next pickle of a stream describes, after a look at its operations."""
        start = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        end = stream.tell()
        stream.seek(start)
        data = stream.read(end - start)
        self._check_operations(data)
        return Unpickler(io.BytesIO(data)).load()

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
        if not isinstance(storage, StorageNote):
            raise damaged(self.path, "a tensor has no storage")
        key = str(id(storage))
        if f"data/{key}" not in self._storages:
            self._storages[f"data/{key}"] = self._stored(storage)
        values = self._storages[f"data/{key}"]
        return super()._tensor(("storage", values.dtype, key, "cpu", values.numel()), offset, shape, stride)

    def _stored(self, storage: StorageNote) -> Tensor:
        data = storage.arguments[0] if storage.arguments else None
        if not isinstance(data, bytes):
            raise damaged(self.path, "a storage has no bytes")
        stream = io.BytesIO(data)
        parts = [self._load(stream) for _ in range(_N_PICKLES)]
        described = parts[3]
        if not isinstance(described, tuple) or len(described) < 5 or not isinstance(described[1], torch.dtype):
            raise damaged(self.path, "a storage is described in a way that is not known")
        dtype, n = described[1], described[4]
        n_said, numbers = int.from_bytes(stream.read(8), "little"), stream.read()
        if n_said != n or len(numbers) != n * dtype.itemsize:
            raise damaged(self.path, f"a storage has {len(numbers)} bytes, and {n} numbers of {dtype} were claimed")
        return torch.from_numpy(np.frombuffer(numbers, np.uint8).copy()).view(dtype)
