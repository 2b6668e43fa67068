"""An old address: dictionaries are in `dictionary_learning.dictionaries`."""

from dictionary_learning.dictionaries import AutoEncoder, Dictionary, IdentityDict

__all__ = ["AutoEncoder", "Dictionary", "IdentityDict"]
