"""Dictionaries of other packages, read and written exactly."""

# the formats register themselves when they are imported
from dictionary_learning.interop import (  # noqa: F401
    _gemma_scope,
    _llama_scope,
    _own,
    _saprmarks,
    _single_files,
    _sparsify,
)
from dictionary_learning.interop._base import FORMATS, Format, Loaded
from dictionary_learning.interop._convert import convert, write_dictionary
from dictionary_learning.interop._hub import load_from_hub, push_to_hub
from dictionary_learning.interop._loading import load_many
from dictionary_learning.interop._releases import Release, list_pretrained
from dictionary_learning.interop._sae import Sae
from dictionary_learning.interop._saebench import as_custom_sae

__all__ = [
    "FORMATS",
    "Format",
    "Loaded",
    "Release",
    "Sae",
    "as_custom_sae",
    "convert",
    "list_pretrained",
    "load_from_hub",
    "load_many",
    "push_to_hub",
    "write_dictionary",
]
