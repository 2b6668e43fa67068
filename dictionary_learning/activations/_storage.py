"""Rows of activations in memory, as floating-point numbers or as 8-bit integers."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._hardware import in_large_pages
from dictionary_learning.errors import ConfigError, DataError

_LARGEST = 127  # the largest int8 whose negative is an int8 too

KINDS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""Types that rows can be stored in, by name."""


def storage_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Returns the type with that name."""
    found: Any = KINDS.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not (found.is_floating_point or found is torch.int8):
        raise ConfigError(f"Activations cannot be stored as {dtype}. Choose one of: {', '.join(KINDS)}.")
    return found


def as_dtype(rows: Float[Tensor, "*batch"], dtype: torch.dtype) -> Float[Tensor, "*batch"]:
    """Returns activations in another floating-point type."""
    converted = rows.to(dtype)
    if dtype is torch.float16 and rows.dtype is not torch.float16:
        overflowed = converted.isinf() & rows.isfinite()
        if bool(overflowed.any()):
            raise DataError(
                f"An activation of {float(rows[overflowed].abs().max()):.3g} exceeds the largest float16 "
                f"({torch.finfo(torch.float16).max:,.0f}). Set dtype to 'bfloat16', 'float32' or 'int8'."
            )
    return converted


class RowStorage:
    """A number of rows that are written and read by their slots.

    Memory is taken for the first `at_first` of them, and for all once a later one is written.

    In int8, a row is divided by its largest absolute value / 127 and rounded. That takes half the
    memory of 16 bits, with an error of at most 1/254 of the largest value in each coordinate.

    int8 rows are returned in the type `served`, others as they are stored.
    """

    def __init__(
        self, size: int, width: int, dtype: torch.dtype, device: torch.device | str = "cpu",
        served: torch.dtype = torch.float32, at_first: int | None = None,
    ):  # fmt: skip
        self._size, self._served = size, served
        n = size if at_first is None else min(at_first, size)
        self.rows = in_large_pages(torch.empty(n, width, dtype=dtype, device=device))
        self.scales = torch.empty(n, device=device) if dtype is torch.int8 else None

    def write(self, slots: Int[Tensor, "n"], rows: Float[Tensor, "n width"]) -> None:
        """Writes rows into slots."""
        if len(self.rows) < self._size and len(slots) and int(slots.max()) >= len(self.rows):
            self._grow()
        rows = rows.to(self.rows.device)
        if self.scales is None:
            self.rows.index_copy_(0, slots, as_dtype(rows, self.rows.dtype))
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

    def snapshot(self, slots: Int[Tensor, "n"]) -> dict[str, Tensor]:
        """Returns copies of the rows in slots as they are stored, for a state."""
        return {name: tensor.index_select(0, slots) for name, tensor in self._tensors().items()}

    def load(self, stored: dict[str, Tensor]) -> None:
        """Writes the rows of a snapshot into the first slots."""
        own = self._tensors()
        ours, theirs = ({k: (tuple(t.shape[1:]), t.dtype) for k, t in held.items()} for held in (own, stored))
        n = len(stored["rows"])
        if ours != theirs or n > len(self.rows):
            raise ConfigError(
                f"The state holds {n} rows as {theirs}; here {len(self.rows)} rows are held as {ours}. Build the "
                "buffer with the same arguments."
            )
        for name, tensor in own.items():
            tensor[:n].copy_(stored[name])

    def compacted(self, slots: Int[Tensor, "n"]) -> "RowStorage":
        """Returns a storage of as many slots, which holds the rows of these in its first ones."""
        moved = copy.copy(self)
        moved.rows = self.rows.index_select(0, slots)
        moved.scales = None if self.scales is None else self.scales.index_select(0, slots)
        return moved

    def _grow(self) -> None:
        rows, scales = (
            None if old is None else torch.cat([old, old.new_empty(self._size - len(old), *old.shape[1:])])
            for old in (self.rows, self.scales)
        )
        assert rows is not None
        self.rows, self.scales = rows, scales

    def _tensors(self) -> dict[str, Tensor]:
        return {"rows": self.rows} if self.scales is None else {"rows": self.rows, "scales": self.scales}


def to_bytes(rows: Float[Tensor, "n width"]) -> tuple[Int[Tensor, "n width"], Float[Tensor, "n"]]:
    """Returns integers from -127 to 127, and the factor of each row that converts them back."""
    rows = rows.float()
    scales = rows.abs().amax(dim=1) / _LARGEST if rows.shape[1] else rows.new_zeros(len(rows))  # (n,)
    tiny = torch.finfo(torch.float32).tiny  # rows of zeros have the scale 0
    return (rows / scales.clamp_min(tiny).unsqueeze(1)).round_().to(torch.int8), scales


def from_bytes(
    values: Int[Tensor, "n width"], scales: Float[Tensor, "n"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n width"]:
    """Returns the rows that integers and factors stand for."""
    return as_dtype(values.float() * scales.unsqueeze(1), dtype)
