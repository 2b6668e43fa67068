"""The old address of `Encoder`."""

from dictionary_learning.ops.backend import Encoder

__all__ = ["Encoder"]
