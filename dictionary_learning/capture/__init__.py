"""Reads activations from a model, and writes others into it."""

from dictionary_learning.capture._inputs import InputsLike, MaskLike
from dictionary_learning.capture._model import TracedModel
from dictionary_learning.capture._model_inputs import ModelInputs
from dictionary_learning.capture._tracing import Edit

__all__ = ["Edit", "InputsLike", "MaskLike", "ModelInputs", "TracedModel"]
