"""Which weights of a dictionary were set by hand since its trainer was built."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers by the bytes of a value: their sums do not depend on the order."""
_BLOCK = 1 << 22
"""Values that are added up at once."""


class InitialWeights:
    """Knows the weights of a module as they are now, without keeping a copy of its matrices."""

    def __init__(self, module: nn.Module):
        self._module, self._marks = module, _marks(module)

    @contextmanager
    def keep(self, *, everything: bool = False) -> Generator[set[str], None, None]:
        """Keeps what was changed since then, or all, from changes inside the `with` block.

        Its value are the names of the parameters that are kept.
        """
        marks = _marks(self._module)
        names = (
            set(marks) if everything else {n for n, mark in marks.items() if not _are_same(mark, self._marks.get(n))}
        )
        parameters = {name: p for name, p in self._module.named_parameters() if name in names}
        kept = {name: p.detach().clone() for name, p in parameters.items()}
        yield names
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(kept[name])


def _marks(module: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    return {name: _mark(p.detach()) for name, p in module.named_parameters()}


def _mark(values: Tensor) -> tuple[Tensor, ...]:
    """Returns what a change of values changes: a vector itself, of a matrix its sums both ways."""
    bits = values.contiguous().view(_WHOLE[values.element_size()])
    if bits.ndim < 2:
        return (bits.clone(),)
    # in blocks, since a sum makes a copy of 8 bytes for each value
    bits = bits.flatten(1)
    blocks = bits.split(max(_BLOCK // max(bits.shape[1], 1), 1))
    by_column = blocks[0].sum(0)
    for block in blocks[1:]:
        by_column += block.sum(0)
    return by_column, torch.cat([block.sum(1) for block in blocks])


def _are_same(one: tuple[Tensor, ...], other: tuple[Tensor, ...] | None) -> bool:
    return other is not None and all(torch.equal(a, b.to(a.device)) for a, b in zip(one, other, strict=True))
