"""What is computed: a wiring, a nonlinearity, and the names people know for pairs of them."""

from dictionary_learning.dictionaries.autoencoder import SparseAutoencoder
from dictionary_learning.dictionaries.base import DICTIONARIES, Dictionary, Reconstruction
from dictionary_learning.dictionaries.initialization import geometric_median
from dictionary_learning.dictionaries.named import AutoEncoder, AutoEncoderTopK, BatchTopKSAE, IdentityDict
from dictionary_learning.dictionaries.serialization import load_dictionary, save_dictionary

__all__ = [
    "DICTIONARIES",
    "AutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "Dictionary",
    "IdentityDict",
    "Reconstruction",
    "SparseAutoencoder",
    "geometric_median",
    "load_dictionary",
    "save_dictionary",
]
