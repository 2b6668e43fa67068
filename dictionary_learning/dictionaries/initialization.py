"""Where dictionaries begin."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from dictionary_learning.dictionaries.coder import Coder

_SCALE_SAMPLE = 2048
"""Rows that the scale of the encoder is found on."""

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


def best_scale(dictionary: "Coder", x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"]) -> float:
    """Returns the s that minimizes |y - b_dec - s d|^2, with d what latents decode to at first.

    With many latents for each direction those that are kept overlap, and unit rows overshoot.
    """
    x, y = x[:_SCALE_SAMPLE], y[:_SCALE_SAMPLE]
    latents, _ = dictionary.encode_latents(x)
    affine = dictionary.with_affine_part(torch.zeros_like(y), x)
    decoded = dictionary.decode_latents(latents, x) - affine
    length = decoded.pow(2).sum()
    scale = float(((y - affine) * decoded).sum() / length) if length > 0 else 1.0
    return scale if scale > 0 else 1.0  # a random decoder into another space may point away


CENTERS = {
    "geometric_median": geometric_median,
    "mean": lambda x: x.mean(0),
    "zeros": lambda x: torch.zeros_like(x[0]),
}
"""Where b_dec begins, by name (`b_dec_init_method`)."""


def set_decoder_(
    W_dec: Tensor, W_enc: Tensor | None, *, norm: float, orthogonal: bool, generator: torch.Generator | None
) -> None:
    """Sets the decoder's rows to one norm, orthogonal as far as the width allows if asked, and the encoder to its transpose.

    Args:
        W_dec: (dict_size, output_dim), in place.
        W_enc: (dict_size, activation_dim), in place where it is of the same shape; None to leave it.
        norm: of the rows.
        orthogonal: rows in stretches of output_dim are orthogonal to each other.
        generator: of the directions, where they are drawn anew.
    """
    with torch.no_grad():
        if orthogonal:
            width = W_dec.shape[1]
            for rows in W_dec.split(width):
                q, r = torch.linalg.qr(torch.randn(width, width, generator=generator))
                rows.copy_((q * r.diagonal().sign())[: len(rows)])
        W_dec.mul_(norm / W_dec.norm(dim=1, keepdim=True))
        if W_enc is not None and W_enc.shape == W_dec.shape:
            W_enc.copy_(W_dec)
