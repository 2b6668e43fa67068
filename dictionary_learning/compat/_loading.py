"""Loading as before: a dictionary and its config apart, and names that have changed."""

import os
from typing import Any

import torch

from dictionary_learning.dictionaries import AutoEncoder, Dictionary, load_dictionary as _load_dictionary
from dictionary_learning.dictionaries._folding import fold_decoder_norm_
from dictionary_learning.errors import ConfigError
from dictionary_learning.interop import list_pretrained

pretrained = list_pretrained


def load_dictionary(
    path: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    *,
    base_path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> tuple[Dictionary, dict[str, Any]]:
    """Returns a dictionary, and its config as `config.json` has it.

    As in dictionary-learning 0.1, an `AutoEncoder` of its files gets decoder rows of unit norm:
    latents are rescaled, and the output stays. `dictionary_learning.load_dictionary` rescales
    nothing.

    Args:
        path: The folder; also by its older name `base_path`.
        device: The CPU by default.
        options: Further ones of `dictionary_learning.load_dictionary`.
    """
    if (path is None) == (base_path is None):
        raise ConfigError(f"Got path={path!r} and base_path={base_path!r}; give the folder once.")
    where = path if path is not None else base_path
    assert where is not None
    dictionary = _load_dictionary(where, device, **options)
    if type(dictionary) is AutoEncoder and dictionary.info.format == "dictionary_learning":
        fold_decoder_norm_(dictionary)
    return dictionary, dict(dictionary.info.config)
