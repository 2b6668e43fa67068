"""A stream of activations with known features."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dictionary_learning.synthetic._config import SyntheticConfig
from dictionary_learning.synthetic._firing import drawn_probabilities, effective_probabilities, levels, loadings, prune

_SAMPLE_SEED = 1_000_003
_STEP = 0.1
"""Length of a step that moves features apart, relative to that of a feature."""
_CHUNK = 2048
"""Features whose cosines are in memory at a time."""


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
