"""Methods that are slow or not settled. Importing this package registers them.

Nothing else in the package knows them by name.
"""

from dictionary_learning.experimental import temporal

__all__ = ["temporal"]
