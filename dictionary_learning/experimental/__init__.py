"""Methods that are slow or not settled; importing this package registers them."""

from dictionary_learning.experimental import temporal

__all__ = ["temporal"]
