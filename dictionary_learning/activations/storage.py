"""Rows of activations in memory, as floating-point numbers or as bytes."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.errors import ConfigError

_LARGEST = 127
"""The largest number of a byte with a sign that has its opposite."""

KINDS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""What rows can be kept as, by name."""


def storage_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Returns the type of that name.

    Raises:
        ConfigError: rows cannot be kept as that.
    """
    found = KINDS.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or not (found.is_floating_point or found is torch.int8):
        raise ConfigError(f"Activations cannot be kept as {dtype}. Choose one of: {', '.join(KINDS)}.")
    return found


class RowStorage:
    """A fixed number of rows, written and read by their slots.

    As bytes (int8), a row is divided by its largest absolute value / 127 and rounded: half the memory of 16 bits, and an error of at
    most 1/254 of that largest value in each coordinate.

    Args:
        size: how many rows.
        width: of a row.
        dtype: what they are kept as.
        device: where.
        served: the type that rows of bytes are read as; others are read as they are kept.
    """

    def __init__(
        self,
        size: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        served: torch.dtype = torch.float32,
    ):
        self.rows = torch.empty(size, width, dtype=dtype, device=device)
        self.scales = torch.empty(size, device=device) if dtype is torch.int8 else None
        self._served = served

    def write(self, slots: Int[Tensor, "n"], rows: Float[Tensor, "n width"]) -> None:
        """Puts rows into slots."""
        rows = rows.to(self.rows.device)
        if self.scales is None:
            self.rows.index_copy_(0, slots, rows.to(self.rows.dtype))
        else:
            values, scales = to_bytes(rows)
            self.rows.index_copy_(0, slots, values)
            self.scales.index_copy_(0, slots, scales)

    def read(self, slots: Int[Tensor, "n"]) -> Float[Tensor, "n width"]:
        """Returns copies of the rows in slots."""
        rows = self.rows.index_select(0, slots)
        if self.scales is None:
            return rows
        return from_bytes(rows, self.scales.index_select(0, slots), self._served)

    def tensors(self) -> dict[str, Tensor]:
        """Returns what it holds, for a state."""
        return {"rows": self.rows} if self.scales is None else {"rows": self.rows, "scales": self.scales}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over what another held.

        Raises:
            ConfigError: that was of another size or type.
        """
        own = self.tensors()
        mine, theirs = ({name: (t.shape, t.dtype) for name, t in held.items()} for held in (own, tensors))
        if mine != theirs:
            raise ConfigError(
                f"The state holds rows as {theirs}; here they are {mine}. Build it with the same arguments."
            )
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def to_bytes(rows: Float[Tensor, "n width"]) -> tuple[Int[Tensor, "n width"], Float[Tensor, "n"]]:
    """Returns whole numbers from -127 to 127, and what to multiply each row of them by."""
    rows = rows.float()
    scales = rows.abs().amax(dim=1) / _LARGEST if rows.shape[1] else rows.new_zeros(len(rows))
    tiny = torch.finfo(torch.float32).tiny
    return (rows / scales.clamp_min(tiny).unsqueeze(1)).round_().to(torch.int8), scales


def from_bytes(
    values: Int[Tensor, "n width"], scales: Float[Tensor, "n"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n width"]:
    """Returns the rows that the numbers stand for."""
    return (values.float() * scales.unsqueeze(1)).to(dtype)
