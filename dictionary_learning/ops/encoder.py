"""What pre-activations are made with."""

from typing import NamedTuple

from torch import Tensor

from dictionary_learning.ops.precision import upcast


class Encoder(NamedTuple):
    """What pre-activations W (x - center) + b are made with."""

    W: Tensor
    """(F, D)"""
    b: Tensor
    """(F,)"""
    center: Tensor | None = None
    """(D,); None for zero."""

    def centered(self, x: Tensor) -> Tensor:
        """Returns x - center, in float32 at least."""
        return upcast(x) if self.center is None else upcast(x) - upcast(self.center)
