"""Activations on disk."""

from dictionary_learning.activations.cache._reader import ActivationCache
from dictionary_learning.activations.cache._writing import write_cache

__all__ = ["ActivationCache", "write_cache"]
