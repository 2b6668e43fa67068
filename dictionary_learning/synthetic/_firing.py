"""Which features fire together, and how often.

A feature fires where a Gaussian of unit variance exceeds its threshold. The Gaussians share a few
common causes (a low-rank copula). Then the hierarchy silences children of silent parents, and all
but one of several siblings.
"""

import math
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning.synthetic._config import SyntheticConfig

_LARGEST_SHARED_VARIANCE = 0.9
_GRID = 1000
"""Points of the integral over u in `effective_probabilities`."""


def zipf_probabilities(config: SyntheticConfig) -> Float[Tensor, "n_features"]:
    """Returns rank^-exponent, rescaled to the range from `max_probability` to `min_probability`."""
    shape = torch.arange(1, config.n_features + 1, dtype=torch.float64) ** -config.zipf_exponent
    share = (shape - shape[-1]) / (shape[0] - shape[-1]).clamp_min(torch.finfo(torch.float64).tiny)
    return config.min_probability + (config.max_probability - config.min_probability) * share


def drawn_probabilities(config: SyntheticConfig) -> Float[Tensor, "n_features"]:
    """Returns how often features fire before the hierarchy.

    With `compensate`, the losses to the hierarchy are added, to first order and up to 1, as in
    SynthSAEBench: drawn = min(1, p / p(parent) (1 + sum of its siblings' p / p(parent))).
    """
    drawn = asked = zipf_probabilities(config)
    if config.compensate:
        drawn = asked.clone()
        for above, below in pairwise(levels(config)):
            # (parents, branching): probability given the parent
            given = asked[below].unflatten(0, (-1, config.branching)) / asked[above, None]
            others = given.sum(dim=1, keepdim=True) - given
            drawn[below] = (given * (1 + others)).clamp_max(1).flatten()
    return drawn


def levels(config: SyntheticConfig) -> list[slice]:
    """Returns the ranks of the features on each level, roots first; siblings are adjacent."""
    sizes = [config.n_roots * config.branching**level for level in range(config.depth + 1 if config.n_roots else 0)]
    return [slice(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]


def effective_probabilities(config: SyntheticConfig) -> Float[Tensor, "n_features"]:
    """Returns how often features fire after the hierarchy; exact for independent features.

    p(child) = p(parent) p E[1 / (1 + K)], where K of its siblings would fire, and
    E[1 / (1 + K)] = integral over u from 0 to 1 of prod_siblings (1 - p_j + p_j u).
    """
    drawn = drawn_probabilities(config)
    result = drawn.clone()
    for above, below in pairwise(levels(config)):
        own = drawn[below].unflatten(0, (-1, config.branching))  # (parents, branching)
        # the mean over midpoints of a fine grid, since the integrand is a polynomial of low degree
        points = (torch.arange(_GRID, dtype=torch.float64) + 0.5) / _GRID
        terms = 1 - own[..., None] + own[..., None] * points  # (parents, branching, points)
        wins = (terms.prod(dim=1, keepdim=True) / terms).mean(dim=-1)  # (parents, branching)
        result[below] = (result[above, None] * own * wins).flatten()
    return result


def loadings(config: SyntheticConfig, generator: torch.Generator) -> Float[Tensor, "n_features rank"]:
    """Returns the weight of each common cause in each feature; rows have a squared norm below 1."""
    drawn = torch.randn(config.n_features, config.correlation_rank, generator=generator) * config.correlation
    norm = drawn.norm(dim=1, keepdim=True).clamp_min(torch.finfo(drawn.dtype).tiny)
    return drawn * (math.sqrt(_LARGEST_SHARED_VARIANCE) / norm).clamp_max(1)


def prune(fired: Bool[Tensor, "batch n_features"], config: SyntheticConfig, generator: torch.Generator) -> None:
    """Silences, in place, children of silent parents, and all but a random one of siblings."""
    for above, below in pairwise(levels(config)):
        children = fired[:, below].unflatten(1, (-1, config.branching))  # (batch, parents, branching)
        scores = torch.rand(children.shape, device=fired.device, generator=generator)
        chosen = scores.masked_fill(~children, -1).argmax(dim=-1, keepdim=True)
        winner = torch.zeros_like(children).scatter_(-1, chosen, True)
        fired[:, below] = (children & winner & fired[:, above, None]).flatten(1)
