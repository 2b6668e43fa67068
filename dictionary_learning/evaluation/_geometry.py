"""The directions of latents: how alike they are within a dictionary, and between two."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from dictionary_learning._border import checked
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation._record import Record
from dictionary_learning.synthetic._score import matched_mean

DUPLICATE = 0.95
"""Cosine similarity from which two latents are called duplicates."""
SAME = 0.9
"""|cosine| from which a latent is called the same in two dictionaries."""
_CHUNK = 1024
"""Latents whose cosines with all others are in memory at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry(Record):
    """How alike the decoder directions of a dictionary are."""

    n_latents: int
    """Latents that were compared with all others: all, or a random part."""
    mean_max_cosine: float
    """Mean over latents of the largest cosine with another one; from -1 to 1, lower is better."""
    largest_cosine: float
    frac_duplicates: float
    """Share of latents that have another one of cosine 0.95 or more; lower is better."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match(Record):
    """How many directions of one dictionary another one has."""

    mmcs: float
    """Mean over latents of the first of the largest |cosine| with a latent of the second; from 0 to
    1, 1 if every direction is there too."""
    mmcs_back: float
    """The same of the second in the first."""
    mcc: float
    """Mean |cosine| of the one-to-one matching with the largest sum; from 0 to 1."""
    frac_same: float
    """Share of latents of the first with a |cosine| of 0.9 or more in the second."""
    n_latents: int
    """Latents of the first that were compared."""


@checked()
@torch.no_grad()
def decoder_geometry(dictionary: Dictionary, *, n_latents: int | None = None, seed: int = 0) -> Geometry | None:
    """Returns how alike the decoder directions are; None for a dictionary of several decoders.

    Args:
        dictionary: the dictionary.
        n_latents: how many latents, chosen at random, are compared with all others; by default all.
        seed: of the choice.
    """
    decoder = getattr(dictionary, "W_dec", None)
    if not isinstance(decoder, Tensor) or decoder.ndim != 2 or len(decoder) < 2:
        return None
    rows = normalize(decoder.detach().float(), dim=1)  # (dict_size, dim)
    largest = [_nearest_other(rows, part) for part in _chosen(len(rows), n_latents, seed).split(_CHUNK)]
    found = torch.cat(largest)  # (n,)
    return Geometry(
        n_latents=len(found),
        mean_max_cosine=float(found.mean()),
        largest_cosine=float(found.max()),
        frac_duplicates=float((found >= DUPLICATE).double().mean()),
    )


@checked()
@torch.no_grad()
def match_dictionaries(first: Dictionary, second: Dictionary, *, n_latents: int | None = None, seed: int = 0) -> Match:
    """Returns how many directions two dictionaries share.

    The matching takes time that grows with the cube of the number of latents. With `n_latents` of
    the first, it is a little too good: those that are left out compete for no partner.

    Args:
        first: a dictionary.
        second: a dictionary of activations of the same width.
        n_latents: how many latents of the first, chosen at random; by default all.
        seed: of the choice.

    Raises:
        ConfigError: they have several decoders, or those of different widths.
    """
    one, other = (_decoder(dictionary) for dictionary in (first, second))
    if one.shape[1] != other.shape[1]:
        raise ConfigError(
            f"Got decoders of widths {one.shape[1]} and {other.shape[1]}; only directions in the same space can be "
            "compared. Give dictionaries of one site."
        )
    chosen = one[_chosen(len(one), n_latents, seed).to(one.device)]
    other = other.to(one.device)
    table = (chosen @ other.T).abs()  # (n, second dict_size)
    back = torch.cat([(part @ one.T).abs().amax(1) for part in other.split(_CHUNK)])
    return Match(
        mmcs=float(table.amax(1).mean()),
        mmcs_back=float(back.mean()),
        mcc=matched_mean(table),
        frac_same=float((table.amax(1) >= SAME).double().mean()),
        n_latents=len(chosen),
    )


@checked()
def seed_stability(dictionaries: Sequence[Dictionary], *, n_latents: int | None = None, seed: int = 0) -> Match:
    """Returns the mean `Match` over all pairs of dictionaries that differ in their seed.

    Args:
        dictionaries: at least two.
        n_latents: as in `match_dictionaries`.
        seed: of the choice of latents.

    Raises:
        ConfigError: there are fewer than two, or they cannot be compared.
    """
    if len(dictionaries) < 2:
        raise ConfigError(f"Got {len(dictionaries)} dictionaries; give at least two, of different seeds.")
    pairs = [(a, b) for i, a in enumerate(dictionaries) for b in dictionaries[i + 1 :]]
    found = [match_dictionaries(a, b, n_latents=n_latents, seed=seed) for a, b in pairs]
    means = {key: sum(one[key] for one in found) / len(found) for key in ("mmcs", "mmcs_back", "mcc", "frac_same")}
    return Match(**means, n_latents=found[0].n_latents)


def _decoder(dictionary: Dictionary) -> Float[Tensor, "dict_size dim"]:
    decoder = getattr(dictionary, "W_dec", None)
    if not isinstance(decoder, Tensor) or decoder.ndim != 2:
        raise ConfigError(
            f"A {type(dictionary).__name__} has no single decoder. Give dictionaries with one direction for each "
            "latent."
        )
    return normalize(decoder.detach().float(), dim=1)


def _chosen(dict_size: int, n_latents: int | None, seed: int) -> Int[Tensor, "n"]:
    order = torch.randperm(dict_size, generator=torch.Generator().manual_seed(seed))
    return order[: dict_size if n_latents is None else n_latents].sort().values


def _nearest_other(rows: Float[Tensor, "dict_size dim"], chosen: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Returns the largest cosine of some latents with any other."""
    chosen = chosen.to(rows.device)
    cosines = rows[chosen] @ rows.T  # (n, dict_size)
    cosines[torch.arange(len(chosen), device=rows.device), chosen] = -1
    return cosines.amax(1)
