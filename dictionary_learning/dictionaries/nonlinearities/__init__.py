"""Nonlinearities, one file each."""

from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES, Nonlinearity
from dictionary_learning.dictionaries.nonlinearities.batch_top_k import BatchTopK
from dictionary_learning.dictionaries.nonlinearities.relu import ReLU
from dictionary_learning.dictionaries.nonlinearities.threshold import KeepsSetNumber
from dictionary_learning.dictionaries.nonlinearities.top_k import TopK

__all__ = ["NONLINEARITIES", "BatchTopK", "KeepsSetNumber", "Nonlinearity", "ReLU", "TopK"]
