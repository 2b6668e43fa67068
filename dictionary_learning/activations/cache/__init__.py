"""Activations on disk."""

from dictionary_learning.activations.cache.reader import ActivationCache
from dictionary_learning.activations.cache.writer import write_cache

__all__ = ["ActivationCache", "write_cache"]
