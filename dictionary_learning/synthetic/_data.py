"""A stream of activations with known features.

A feature fires where a Gaussian of unit variance exceeds its threshold. The Gaussians share a few
common causes (a low-rank copula). Then the hierarchy silences children of silent parents, and all
but one of several siblings.
"""

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from dictionary_learning.synthetic._config import SyntheticConfig

_SAMPLE_SEED = 1_000_003
_STEP = 0.1
"""Length of a step that moves features apart, relative to that of a feature."""
_CHUNK = 2048
"""Features whose cosines are in memory at a time."""
_LARGEST_SHARED_VARIANCE = 0.9
_GRID = 1000
"""Points of the integral over u in `effective_probabilities`."""


class KnownBatch(NamedTuple):
    """Activations and what they consist of: x = coefficients @ features + bias."""

    activations: Float[Tensor, "batch activation_dim"]
    coefficients: Float[Tensor, "batch n_features"]


class SyntheticActivations:
    """An endless, seeded source of activations at one site.

    A dictionary should find its `features`, `bias` and `probabilities`.
    """

    def __init__(self, config: SyntheticConfig, *, device: str | torch.device = "cpu", site: str = "synthetic"):
        self.config = config
        self.device = torch.device(device)
        self.widths = {site: config.activation_dim}
        fixed = torch.Generator().manual_seed(config.seed)
        sizes = (config.n_features, config.activation_dim)
        features = unit_features(*sizes, steps=config.separation_steps, generator=fixed)
        bias = config.bias_norm * normalize(torch.randn(config.activation_dim, generator=fixed), dim=0)
        shared = loadings(config, fixed)  # (n_features, rank)
        own = (1 - shared.square().sum(dim=1)).sqrt()  # (n_features,): each Gaussian has unit variance
        means = torch.linspace(config.first_magnitude, config.last_magnitude, config.n_features)
        self.features, self.bias = features.to(self.device), bias.to(self.device)
        self.probabilities = effective_probabilities(config).to(torch.float32).to(self.device)
        # thresholds and loadings in units of a feature's own noise
        self._thresholds = (torch.special.ndtri(1 - drawn_probabilities(config)).float() / own).to(self.device)
        self._shared = (shared / own[:, None]).to(self.device)
        self._means = means.to(self.device)
        self._generator = torch.Generator(self.device).manual_seed(config.seed + 1)

    def __iter__(self) -> Iterator[Float[Tensor, "batch activation_dim"]]:
        while True:
            yield self.batch_with_features(self.config.batch_size).activations

    def batch_with_features(self, n: int) -> KnownBatch:
        """Returns the next n rows of the stream, with the magnitudes of their features."""
        return self._draw(n, self._generator)

    def sample(self, n: int) -> Float[Tensor, "n activation_dim"]:
        """Returns n rows that are not part of the stream, the same at every call."""
        generator = torch.Generator(self.device).manual_seed(self.config.seed + _SAMPLE_SEED)
        return self._draw(n, generator).activations

    def held_out(self, n: int, batch_size: int) -> Iterator[KnownBatch]:
        """Yields n rows in batches that are not part of the stream, the same at every call."""
        generator = torch.Generator(self.device).manual_seed(self.config.seed + 2 * _SAMPLE_SEED)
        for start in range(0, n, batch_size):
            yield self._draw(min(batch_size, n - start), generator)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"])

    def _draw(self, n: int, generator: torch.Generator) -> KnownBatch:
        config = self.config

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, device=self.device, generator=generator)

        noise, common = randn(n, config.n_features), randn(n, config.correlation_rank)
        fired = torch.addmm(noise, common, self._shared.T) > self._thresholds  # (batch, n_features)
        prune(fired, config, generator)
        rows, columns = fired.nonzero(as_tuple=True)
        drawn = self._means[columns] + config.magnitude_std * randn(len(rows))
        coefficients = torch.zeros_like(noise)  # (batch, n_features)
        coefficients[rows, columns] = drawn.abs()
        # from the leaves up: each child is scaled once, by its parent's own magnitude
        for above, below in reversed(list(pairwise(levels(config)))):
            parents = coefficients[:, above] / self._means[above]
            coefficients[:, below] *= parents.repeat_interleave(config.branching, dim=1)
        return KnownBatch(torch.addmm(self.bias, coefficients, self.features), coefficients)


def unit_features(
    n_features: int, dim: int, *, steps: int, generator: torch.Generator
) -> Float[Tensor, "n_features dim"]:
    """Returns random unit directions, moved apart by gradient steps on the fourth power of cosines.

    The generator is on the CPU; 0 steps leave the directions random.
    """
    features = normalize(torch.randn(n_features, dim, generator=generator), dim=1)
    for _ in range(steps):
        push = torch.empty_like(features)
        for start in range(0, n_features, _CHUNK):
            rows = slice(start, start + _CHUNK)
            cosines = features[rows] @ features.T  # (chunk, n_features)
            index = torch.arange(len(cosines))
            cosines[index, index + start] = 0  # a feature does not repel itself
            push[rows] = cosines.pow(3) @ features
        # steps of equal length, since the overlap differs by orders of magnitude between widths
        features = normalize(features - _STEP * normalize(push, dim=1) / dim**0.5, dim=1)
    return features


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
    depth = config.depth if config.branching else 0
    sizes = [config.n_roots * config.branching**level for level in range(depth + 1 if config.n_roots else 0)]
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
