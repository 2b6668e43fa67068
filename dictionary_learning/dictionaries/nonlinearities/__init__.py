"""Nonlinearities, one file each."""

from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES, Nonlinearity
from dictionary_learning.dictionaries.nonlinearities.relu import ReLU
from dictionary_learning.dictionaries.nonlinearities.top_k import TopK

__all__ = ["NONLINEARITIES", "Nonlinearity", "ReLU", "TopK"]
