"""Loading under the names of EleutherAI's sparsify."""

import os
from typing import Any

import torch

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.interop._loading import load_dictionary, load_many

_Device = torch.device | str | None


class Sae:
    """The loaders of sparsify's `Sae`, for any format; they return dictionaries of this package."""

    load_from_disk = staticmethod(load_dictionary)

    @staticmethod
    def load_from_hub(name: str, hookpoint: str | None = None, device: _Device = None, **options: Any) -> Dictionary:
        """Loads the dictionary of a hookpoint from the hub, or from a local folder."""
        return load_dictionary(name, device, site=hookpoint, **options)

    @staticmethod
    def load_many(
        name: str | os.PathLike, local: bool = True, device: _Device = None, **options: Any
    ) -> dict[str, Dictionary]:
        """Loads all dictionaries of a run by hookpoint, in natural order; `local` has no effect."""
        return load_many(name, device, **options)
