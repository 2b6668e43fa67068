"""Directions of known features."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

_STEP = 0.1
_CHUNK = 2048


def unit_features(
    n_features: int, dim: int, *, steps: int, generator: torch.Generator
) -> Float[Tensor, "n_features dim"]:
    """Returns random unit directions, moved apart by gradient steps on the fourth power of their cosines.

    Args:
        n_features: how many.
        dim: their width.
        steps: gradient steps; 0 leaves the directions random.
        generator: on the CPU.
    """
    features = normalize(torch.randn(n_features, dim, generator=generator), dim=1)
    for _ in range(steps):
        push = torch.empty_like(features)
        for start in range(0, n_features, _CHUNK):
            rows = slice(start, start + _CHUNK)
            cosines = features[rows] @ features.T
            index = torch.arange(len(cosines))
            cosines[index, index + start] = 0
            push[rows] = cosines.pow(3) @ features
        # steps of equal length: the overlap to remove differs by orders of magnitude between widths
        features = normalize(features - _STEP * normalize(push, dim=1) / dim**0.5, dim=1)
    return features


def mean_max_overlap(features: Float[Tensor, "n_features dim"]) -> float:
    """Returns the mean over features of the largest |cos| with another, from 0 to 1; lower is easier."""
    largest = []
    for start in range(0, len(features), _CHUNK):
        cosines = (features[start : start + _CHUNK] @ features.T).abs()
        index = torch.arange(len(cosines), device=features.device)
        cosines[index, index + start] = 0
        largest.append(cosines.amax(dim=1))
    return float(torch.cat(largest).double().mean())
