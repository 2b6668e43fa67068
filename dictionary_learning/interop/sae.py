"""Loading under the names of EleutherAI's sparsify."""

import os
from typing import Any

import torch

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.interop.loading import load_dictionary, load_many

_Device = torch.device | str | None


class Sae:
    """The loaders of sparsify's `Sae`, by its names; they return dictionaries of this package, from files of any format."""

    @staticmethod
    def load_from_disk(path: str | os.PathLike, device: _Device = None, **options: Any) -> Dictionary:
        """Loads a dictionary from a folder; options are those of `load_dictionary`."""
        return load_dictionary(path, device, **options)

    @staticmethod
    def load_from_hub(name: str, hookpoint: str | None = None, device: _Device = None, **options: Any) -> Dictionary:
        """Loads the dictionary of a hookpoint from a repository of the hub, or from a local folder."""
        return load_dictionary(name, device, site=hookpoint, **options)

    @staticmethod
    def load_many(
        name: str | os.PathLike, local: bool = True, device: _Device = None, **options: Any
    ) -> dict[str, Dictionary]:
        """Loads all dictionaries of a run by hookpoint, in natural order.

        Args:
            name: a folder, or a repository where there is no such folder.
            local: has no effect; sparsify has this argument.
            device: the device of the dictionaries.
            options: those of `load_many`.
        """
        return load_many(name, device, **options)
