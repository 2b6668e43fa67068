"""Where dictionaries begin."""

import torch
from jaxtyping import Float
from torch import Tensor

_LARGEST_SAMPLE = 32_768
"""Rows that the geometric median looks at; Gao et al. 2024 take as many (A.1)."""


def unit_rows(rows: int, columns: int, generator: torch.Generator | None = None) -> Float[Tensor, "rows columns"]:
    """Returns random directions, uniform on the sphere."""
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator), dim=-1)


def geometric_median(points: Float[Tensor, "n dim"], max_iter: int = 100, tol: float = 1e-5) -> Float[Tensor, "dim"]:
    """Returns the point with the least sum of distances to the given ones, by smoothed Weiszfeld steps.

    y <- sum(x_i / d_i) / sum(1 / d_i),  d_i = max(|x_i - y|, eps)

    The floor eps, a millionth of the mean distance, keeps a step finite that lands on a point. More than 32,768 points
    are thinned out evenly. Computed in float32 whatever is given.
    Weiszfeld 1937; smoothing after Pillutla et al. 2022, https://arxiv.org/abs/1912.13445.

    Args:
        points: at least one point.
        max_iter: the most steps to take.
        tol: stops when the sum of distances falls by less than this share of itself.
    """
    given = points.dtype
    if len(points) > _LARGEST_SAMPLE:
        points = points[torch.arange(_LARGEST_SAMPLE, device=points.device) * len(points) // _LARGEST_SAMPLE]
    points = points.float()
    median = points.mean(0)
    distances = (points - median).norm(dim=-1)
    floor = distances.mean() * 1e-6 + 1e-30  # where all points are one, sums of 1 / floor stay finite
    total = distances.sum()
    for _ in range(max_iter):
        weights = 1 / distances.clamp_min(floor)
        median = weights @ points / weights.sum()
        distances = (points - median).norm(dim=-1)
        if total - distances.sum() <= tol * total:
            break
        total = distances.sum()
    return median.to(given)
