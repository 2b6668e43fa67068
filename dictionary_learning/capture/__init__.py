"""Reads activations from a model, and writes others into it."""

from dictionary_learning.capture.inputs import InputsLike, MaskLike, ModelInputs
from dictionary_learning.capture.model import TracedModel
from dictionary_learning.capture.tracing import Edit

__all__ = ["Edit", "InputsLike", "MaskLike", "ModelInputs", "TracedModel"]
