"""Dictionaries of other packages, read and written exactly."""

from dictionary_learning.interop import (
    gemma_scope,
    llama_scope,
    own,
    sae_lens,
    sae_lens_legacy,
    saprmarks,
    single_files,
    sparsify,
    temporal,
)
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
    "gemma_scope",
    "list_pretrained",
    "llama_scope",
    "load_from_hub",
    "load_many",
    "own",
    "push_to_hub",
    "sae_lens",
    "sae_lens_legacy",
    "saprmarks",
    "single_files",
    "sparsify",
    "temporal",
    "write_dictionary",
]
