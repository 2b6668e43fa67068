"""An old address: dictionaries are loaded by `dictionary_learning.dictionaries`."""

from dictionary_learning.dictionaries import load_dictionary

__all__ = ["load_dictionary"]
