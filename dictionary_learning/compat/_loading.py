"""Loading as before: a dictionary and its config apart, and names that have changed."""

import os
from typing import Any

import torch

from dictionary_learning.dictionaries import Dictionary, load_dictionary as _load_dictionary
from dictionary_learning.interop import list_pretrained

pretrained = list_pretrained


def load_dictionary(
    path: str | os.PathLike, device: torch.device | str | None = None, **options: Any
) -> tuple[Dictionary, dict[str, Any]]:
    """Returns a dictionary and its config, which is `dictionary.info.config`.

    Args:
        path: a folder, a file of weights, or a repository of the hub.
        device: the device of the dictionary; the CPU by default.
        options: further arguments of `dictionary_learning.load_dictionary`.
    """
    dictionary = _load_dictionary(path, device, **options)
    return dictionary, dict(dictionary.info.config)
