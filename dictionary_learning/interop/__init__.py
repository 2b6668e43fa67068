"""Dictionaries of other packages, read and written exactly."""

# the formats register themselves when they are imported
from dictionary_learning.interop import gemma_scope, llama_scope, own, saprmarks, single_files, sparsify  # noqa: F401
from dictionary_learning.interop.base import FORMATS, Format, Loaded
from dictionary_learning.interop.convert import convert, write_dictionary
from dictionary_learning.interop.hub import load_from_hub, push_to_hub
from dictionary_learning.interop.loading import load_many
from dictionary_learning.interop.releases import Release, list_pretrained
from dictionary_learning.interop.sae import Sae
from dictionary_learning.interop.saebench import as_custom_sae

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
