"""Where activations come from, and which of them count."""

from dictionary_learning.activations.filters import TokenFilter
from dictionary_learning.activations.stream import ActivationBatch, ActivationSource

__all__ = ["ActivationBatch", "ActivationSource", "TokenFilter"]
