"""`.pt` files, as `torch.save` writes them, read without executing anything of them.

A `.pt` file is a zip archive: `data.pkl` describes objects and tensors, and `data/<n>` holds the
bytes of each tensor. A pickle is a program that may call any function, so `find_class` imports
nothing here: it returns notes of what was named. Tensors are built from these notes after the
pickle has ended, and only within the bytes that the archive holds. `torch.load(weights_only=True)`
is not enough: it refuses files with a config object inside, believes the sizes that the pickle
claims, and has itself been a way to run code (CVE-2025-32434, before torch 2.6).
"""

import contextlib
import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dictionary_learning._hardware import in_large_pages
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._files import Files
from dictionary_learning.interop._safe import READ_ERRORS, checked_members, damaged, open_safetensors, plain_name

MOST_PICKLE = 32 << 20
"""Bytes of `data.pkl`; without the tensors it has a few thousand."""
_MOST_OPERATIONS = 1_000_000
"""Operations of the pickle; a dictionary has a few hundred, an optimizer's state a few thousand."""
_MOST_OBJECTS = 200_000
"""Values in a file, counted as often as they are referred to."""
_DEEPEST = 20
"""Levels of nesting."""
_CHUNK = 16 << 20
"""Bytes that are read at once."""
_OPERATIONS = {
    *("PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *(
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINBYTES",
        "BINBYTES8",
        "SHORT_BINBYTES",
        "EMPTY_DICT",
        "EMPTY_LIST",
    ),
    *("EMPTY_TUPLE", "EMPTY_SET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "ADDITEMS", "SETITEM"),
    *("SETITEMS", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "BINPERSID"),
    *("REDUCE", "NEWOBJ", "BUILD"),
}
"""Operations that `torch.save` writes."""
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


class Inert:
    """An object of a class that was not imported; `state` holds its attributes."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *arguments: Any) -> "Inert":
        # not __init__, which the operation NEWOBJ does not call
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        # without this method a pickle could set any attribute, on the class as well
        self.state = state


class _TensorNote(Inert):
    """A call of torch._utils that was not made; a parameter holds the note of a tensor."""


class StorageNote(Inert):
    """A call of torch.storage that was not made: the bytes of a storage that `torch.save` wrote."""


class _Mapping(dict):
    """An OrderedDict."""

    def __setstate__(self, state: Any) -> None:
        """Drops the attributes that PyTorch keeps beside a state's tensors."""


_CLASSES = {
    ("torch._utils", "_rebuild_tensor"): _TensorNote,
    ("torch._utils", "_rebuild_tensor_v2"): _TensorNote,
    ("torch._utils", "_rebuild_parameter"): _TensorNote,
    ("torch.storage", "_load_from_bytes"): StorageNote,
    ("collections", "OrderedDict"): _Mapping,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class Unpickler(pickle.Unpickler):
    """Reads a pickle without importing what it names: classes are `Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        return _CLASSES.get((module, name), Inert)  # super() would import the module

    def persistent_load(self, reference: Any) -> tuple[Any, ...]:
        return tuple(reference)  # a storage, whose bytes are read when a tensor needs them


def read_pt(path: Path) -> Any:
    """Returns the content of a `.pt` file, with `Inert` in place of objects of unknown classes."""
    with _opened(path) as archive:
        return archive.resolve(archive.described)


def read_names(files: Files, name: str) -> frozenset[str]:
    """Returns the names at the top of a file of weights, without reading the tensors."""
    path = files.path(name)
    if name.endswith(".safetensors"):
        with open_safetensors(path) as file:
            return frozenset(map(plain_name, file.keys()))
    with _opened(path) as archive:
        names = archive.described if isinstance(archive.described, dict) else ()
        return frozenset(plain_name(key) for key in names if isinstance(key, str))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator["Archive"]:
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointError(
                f"'{path}' is no archive as torch.save has written since 1.6; it may be cut off, or older. Get it "
                "again, or load it where you trust it and save it again."
            )
        with zipfile.ZipFile(path) as file:
            yield Archive(path, file)
    except (pickle.UnpicklingError, *READ_ERRORS) as error:
        raise damaged(path, error) from error


class Archive:
    """An open `.pt` file: what its pickle describes, and the tensors that its storages hold."""

    def __init__(self, path: Path, archive: zipfile.ZipFile):
        self.path, self.archive = path, archive
        self.members = {member.filename: member for member in checked_members(path, archive)}
        self._storages: dict[str, Tensor] = {}  # tensors may be views of one storage
        self._n_objects = 0  # references count again, or a few lists could hold a billion values
        pickles = [name for name in self.members if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise damaged(path, "it does not hold one data.pkl")
        self.prefix = pickles[0].removesuffix("data.pkl")
        if f"{self.prefix}byteorder" in self.members and archive.read(f"{self.prefix}byteorder") != b"little":
            raise damaged(path, "it was written by a machine of another byte order")
        if self.members[pickles[0]].file_size > MOST_PICKLE:
            raise CheckpointError(f"'{path}' has a pickle of more than {MOST_PICKLE} bytes. It is no dictionary.")
        data = archive.read(pickles[0])
        self._check_operations(data)
        self.described: Any = Unpickler(io.BytesIO(data)).load()
        """What the pickle describes, with notes in place of tensors and objects."""

    def _check_operations(self, data: bytes) -> None:
        """Refuses what lets the unpickler allocate memory: unknown operations, far places."""
        for n, (operation, argument, _) in enumerate(pickletools.genops(data)):
            is_far = operation.name in ("BINPUT", "LONG_BINPUT") and int(argument or 0) > n
            if operation.name not in _OPERATIONS or n > _MOST_OPERATIONS or is_far:
                raise CheckpointError(
                    f"'{self.path}' has a pickle with the operation {operation.name} at place {n}, which no "
                    "checkpoint needs. Get the file again."
                )

    def resolve(self, value: Any, depth: int = 0) -> Any:
        """Returns the value with tensors in place of the notes."""
        self._n_objects += 1
        if depth > _DEEPEST or self._n_objects > _MOST_OBJECTS:
            raise CheckpointError(
                f"'{self.path}' holds more, or deeper, values than any checkpoint. It is no dictionary."
            )
        if isinstance(value, dict):
            return {key: self.resolve(part, depth + 1) for key, part in value.items()}
        if isinstance(value, (list, tuple, set)):
            return [self.resolve(part, depth + 1) for part in value]
        if isinstance(value, _TensorNote):
            # without requires_grad and hooks
            is_parameter = isinstance(value.arguments[0], _TensorNote)
            return self.resolve(value.arguments[0], depth + 1) if is_parameter else self._tensor(*value.arguments[:4])
        if isinstance(value, Inert):
            value.state = self.resolve(value.state, depth + 1)
        return value

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> Tensor:
        _, dtype, key, _, n_stored = storage[:5]  # the word "storage", ..., its name, its device, numbers
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(
                f"'{self.path}' stores a tensor in a way that is not known; {', '.join(_DTYPES)} are read."
            )
        values = self._values(f"{self.prefix}data/{key}", dtype, n_stored)
        if not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *stride)) or len(shape) != len(stride):
            raise damaged(self.path, f"a tensor has shape {shape!r}, strides {stride!r} and offset {offset!r}")
        n, last = math.prod(shape), offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        # no element twice: a stride of zero would make a giant of one number
        if n and (last >= values.numel() or n > values.numel()):
            raise damaged(
                self.path, f"a tensor of shape {tuple(shape)} claims more than the {values.numel()} numbers stored"
            )
        return values.as_strided(shape, stride, offset) if n else values.new_zeros(shape)

    def _values(self, name: str, dtype: torch.dtype, n: Any) -> Tensor:
        """Returns the numbers of a storage; tensors may share one."""
        if name not in self._storages:
            n_bytes = self.members[name].file_size if name in self.members else 0
            if n_bytes != n * dtype.itemsize:
                # torch.load believes the number, and reads past the end
                raise damaged(self.path, f"{name} has {n_bytes} bytes, and {n} numbers of {dtype} were claimed")
            data = in_large_pages(torch.empty(n_bytes, dtype=torch.uint8))  # no more than the archive holds
            with self.archive.open(name) as file:
                for at in range(0, n_bytes, _CHUNK):  # a file that ends early does not fill the slice: ValueError
                    data.numpy()[at : at + _CHUNK] = np.frombuffer(file.read(_CHUNK), np.uint8)
            self._storages[name] = data.view(dtype)
        if self._storages[name].dtype != dtype:
            raise damaged(self.path, f"{name} is claimed in two dtypes")
        return self._storages[name]
