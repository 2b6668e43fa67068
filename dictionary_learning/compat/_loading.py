"""Loading as before: a dictionary and its config apart, and names that have changed."""

import os
from typing import Any

import torch

from dictionary_learning.dictionaries import Dictionary, load_dictionary as _load_dictionary
from dictionary_learning.interop import list_pretrained

pretrained = list_pretrained


def load_dictionary(
    path: str | os.PathLike[str], device: torch.device | str | None = None, **options: Any
) -> tuple[Dictionary, dict[str, Any]]:
    """Returns `dictionary_learning.load_dictionary(...)` and the dictionary's `info.config`."""
    dictionary = _load_dictionary(path, device, **options)
    return dictionary, dict(dictionary.info.config)
