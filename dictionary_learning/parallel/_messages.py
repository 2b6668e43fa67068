"""Nested values with tensors, sent from one rank to another through main memory.

A message is the number of its bytes, its pickled values, and the bytes of each tensor. Ranks of one
job run the same program for the same user, so what they send each other is trusted.
"""

import io
import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

_PIECE = 1 << 28
"""Bytes of a tensor that are sent at once."""


class Message(NamedTuple):
    """Values as bytes, and their tensors, which are copied where they may change."""

    values: bytes
    tensors: list[Tensor]

    @classmethod
    def of(cls, value: Any) -> "Message":
        """Returns a value as a message."""
        file = io.BytesIO()
        writer = _Writer(file)
        writer.dump(value)
        return cls(file.getvalue(), writer.tensors)


NOTHING = Message(b"", [])
"""A message that only says that its sender is alive."""


def send(message: Message, peer: int, group: Any) -> None:
    """Sends a message; returns when the other rank has it, or takes it."""
    dist.send(torch.tensor([len(message.values)]), peer, group=group)
    if message.values:
        dist.send(torch.frombuffer(bytearray(message.values), dtype=torch.uint8), peer, group=group)
    for x in message.tensors:
        for piece in _pieces(x):
            dist.send(piece, peer, group=group)


def receive(peer: int, group: Any) -> Any:
    """Returns the next value that a rank has sent; NOTHING where it is only alive."""
    size = torch.zeros(1, dtype=torch.long)
    dist.recv(size, peer, group=group)
    if not int(size):
        return NOTHING
    values = torch.empty(int(size), dtype=torch.uint8)
    dist.recv(values, peer, group=group)
    reader = _Reader(io.BytesIO(values.numpy().tobytes()))
    value = reader.load()
    for x in reader.tensors:
        for piece in _pieces(x):
            dist.recv(piece, peer, group=group)
    return value


def _pieces(x: Tensor) -> Iterator[Tensor]:
    """Yields the bytes of a tensor, as views of it."""
    if x.numel():
        yield from x.view(-1).view(torch.uint8).split(_PIECE)


class _Writer(pickle.Pickler):
    """Leaves tensors out, and keeps them in the order in which they are met."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        self.tensors.append(obj.detach().cpu().contiguous())
        return obj.dtype, tuple(obj.shape)


class _Reader(pickle.Unpickler):
    """Puts tensors without values where tensors were left out."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_load(self, pid: Any) -> Tensor:
        dtype, shape = pid
        self.tensors.append(torch.empty(shape, dtype=dtype))
        return self.tensors[-1]
