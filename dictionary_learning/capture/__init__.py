"""How activations are read from a model and written into it."""

from dictionary_learning.capture.model import TracedModel

__all__ = ["TracedModel"]
