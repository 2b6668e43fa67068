"""Dictionaries of other packages, read and written exactly."""

from dictionary_learning.interop._base import FORMATS, Format, Loaded
from dictionary_learning.interop._circuit_tracer import CIRCUIT_TRACER
from dictionary_learning.interop._gemma_scope import GEMMA_SCOPE
from dictionary_learning.interop._gemma_scope_2 import GEMMA_SCOPE_2
from dictionary_learning.interop._hub import load_from_hub, push_to_hub
from dictionary_learning.interop._llama_scope import LLAMA_SCOPE
from dictionary_learning.interop._llamascopium import Llamascopium
from dictionary_learning.interop._loading import convert, load_many, write_dictionary
from dictionary_learning.interop._own import Own
from dictionary_learning.interop._releases import Release, list_pretrained
from dictionary_learning.interop._sae_lens import SAELens
from dictionary_learning.interop._saebench import as_custom_sae
from dictionary_learning.interop._saprmarks import DictionaryLearning
from dictionary_learning.interop._single_files import SINGLE_FILES
from dictionary_learning.interop._sparsify import Sae, Sparsify
from dictionary_learning.interop._temporal import Temporal

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

FORMATS.register("dictionary_learning", "saprmarks")(DictionaryLearning())
_READ = (*GEMMA_SCOPE, *LLAMA_SCOPE, Llamascopium(), *SINGLE_FILES, *CIRCUIT_TRACER, *GEMMA_SCOPE_2)
for _format in (Own(), Sparsify(), SAELens(), Temporal(), *_READ):
    FORMATS.register(_format.name)(_format)
