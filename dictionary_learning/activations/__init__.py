"""Where activations come from, and which of them count."""

from dictionary_learning.activations._filters import TokenFilter
from dictionary_learning.activations._stream import ActivationBatch, ActivationSource

__all__ = ["ActivationBatch", "ActivationSource", "TokenFilter"]
