"""Dictionaries whose latents are spread over ranks: each holds a slice of dim 0.

A dictionary that holds a slice computes with those latents, and asks `latent_ranks` where latents
are compared or summed over: which are the largest of a token, and what all of them decode to.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dictionary_learning.dictionaries._coder import Coder
from dictionary_learning.dictionaries._initialization import bounds
from dictionary_learning.dictionaries._trainable import Trainable
from dictionary_learning.errors import ConfigError
from dictionary_learning.parallel import ALONE, Ranks

T = TypeVar("T", bound=Trainable)
OF_OUTPUTS = ("b_dec", "W_skip")
"""Tensors of a coder whose dim 0 is the output, which may be as wide as there are latents."""


class Held(NamedTuple):
    """The latents of a coder that this process has."""

    start: int
    stop: int
    whole: int
    """The coder's latents on all ranks."""


def per_latent_tensors(coder: Coder) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of a coder, by name, that have a row for each latent."""
    for name, tensor in (*coder.named_parameters(), *coder.named_buffers()):
        if tensor.shape[:1] == (coder.dict_size,) and name not in OF_OUTPUTS:
            yield name, tensor


@torch.no_grad()
def hold_latents_(dictionary: Trainable, ranks: Ranks) -> None:
    """Keeps this rank's slice of the latents of each coder, in place; one built so stays.

    Raises:
        ConfigError: A coder has fewer latents than there are ranks.
    """
    for part in dictionary.coders():
        coder, whole = part.coder, part.coder.dict_size
        if coder.latent_ranks is ranks:
            continue
        if whole < ranks.size:
            raise ConfigError(
                f"{whole} latents cannot be spread over {ranks.size} ranks. Raise dict_size, or use placement='data'."
            )
        start, stop = bounds(whole, ranks.rank, ranks.size)
        for _, tensor in per_latent_tensors(coder):
            tensor.data = tensor.data[start:stop].clone()  # or the whole would stay in memory
        coder.dict_size, coder.latent_ranks, coder.first_latent = stop - start, ranks, start
    dictionary.dict_size = sum(part.coder.dict_size for part in dictionary.coders())


@torch.no_grad()
def with_all_latents(dictionary: T) -> T:
    """Returns a copy that has the latents of all ranks, on the CPU; every rank must ask for it."""
    made = copy.deepcopy(dictionary).cpu()
    for part in made.coders():
        coder, ranks = part.coder, part.coder.latent_ranks
        for _, tensor in [*per_latent_tensors(coder)]:
            tensor.data = ranks.gather(tensor.data)
        coder.dict_size = len(coder.W_dec)
        coder.latent_ranks, coder.first_latent = ALONE, 0
    made.dict_size = sum(part.coder.dict_size for part in made.coders())
    return made


def held(dictionary: Trainable) -> list[Held]:
    """Returns what this process has of each coder; every rank must ask for it."""
    found: list[Held] = []
    for part in dictionary.coders():
        coder = part.coder
        whole = coder.latent_ranks.total(coder.dict_size)
        found.append(Held(coder.first_latent, coder.first_latent + coder.dict_size, whole))
    return found
