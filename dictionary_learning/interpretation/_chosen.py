"""Latents that somebody names, and how many tokens or neighbors of each are asked for."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from dictionary_learning.errors import ConfigError


def chosen_latents(given: Sequence[int] | Tensor | None, dict_size: int) -> Int[Tensor, "m"]:
    """Returns the latents that were named, or all.

    Raises:
        ConfigError: There is none, one does not exist, or one is named twice.
    """
    if given is None:
        return torch.arange(dict_size)
    found = [int(i) for i in (given.flatten().tolist() if isinstance(given, Tensor) else given)]
    wrong = [i for i in found if not 0 <= i < dict_size]
    if wrong or not found:
        got = f"latent {wrong[0]}" if wrong else "no latents"
        raise ConfigError(f"Got {got}; the dictionary has latents 0 to {dict_size - 1}. Name some of them.")
    twice = next((i for i in found if found.count(i) > 1), None) if len(set(found)) < len(found) else None
    if twice is not None:
        raise ConfigError(f"Latent {twice} is named twice in latents. Name it once.")
    return torch.tensor(found)


def check_number(n: int, most: int, of: str) -> None:
    """Raises ConfigError if so many are not there, or none is asked for."""
    if not 1 <= n <= most:
        raise ConfigError(f"Got n={n}, and there are {most} {of}. Give a number from 1 to {most}.")
