"""Loading under the names of EleutherAI's sparsify."""

import os
from typing import Any

import torch

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.interop.loading import load_dictionary, load_many

_Device = torch.device | str | None


class Sae:
    """The places to load dictionaries from, by the names of sparsify's `Sae`: what comes back is a dictionary of this package.

    Every format is taken that `load_dictionary` takes.
    """

    @staticmethod
    def load_from_disk(path: str | os.PathLike, device: _Device = None, **options: Any) -> Dictionary:
        """Loads a dictionary from a folder; options are those of `load_dictionary`."""
        return load_dictionary(path, device, **options)[0]

    @staticmethod
    def load_from_hub(name: str, hookpoint: str | None = None, device: _Device = None, **options: Any) -> Dictionary:
        """Loads the dictionary of a hookpoint from a repository of the hub, or from a local folder."""
        return load_dictionary(name, device, site=hookpoint, **options)[0]

    @staticmethod
    def load_many(
        name: str | os.PathLike, local: bool = True, device: _Device = None, **options: Any
    ) -> dict[str, Dictionary]:
        """Loads all dictionaries of a run by hookpoint, in natural order.

        Args:
            name: a folder or a repository; a folder is taken where there is one.
            local: has no meaning here; it is what sparsify takes.
            device: where to put them.
            options: those of `load_many`.
        """
        return load_many(name, device, **options)
