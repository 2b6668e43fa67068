"""Where dictionaries begin."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.latents import Latents, SparseLatents, replace_values
from dictionary_learning.ops import backend_for

if TYPE_CHECKING:
    from dictionary_learning.dictionaries.coder import Coder

_SCALE_SAMPLE = 2048
"""Rows that the scale of the encoder is found on."""

_FIT_SAMPLE = 8192
"""Rows that a decoder is fitted on."""
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


def fitted_decoder(
    coder: "Coder",
    x: Float[Tensor, "n activation_dim"],
    y: Float[Tensor, "n output_dim"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "dict_size output_dim"]:
    """Returns rows s * sum_n f_i r / sum_n f_i^2 with r = y - b_dec: what each latent by itself says of the output.

    The common factor s, the best for all together, makes up for latents that say the same. A latent that does not fire on the
    sample gets a random direction, as long as the others' rows are on average.
    """
    x, y = x[:_FIT_SAMPLE], y[:_FIT_SAMPLE]
    latents, _ = coder.encode_latents(x)
    residual = y - coder.with_affine_part(torch.zeros_like(y), x)
    values = latents.values.square() if isinstance(latents, SparseLatents) else latents.square()
    squares = replace_values(latents, values)
    rows = _sums_by_latent(latents, residual, coder.dict_size)
    weights = _sums_by_latent(squares, torch.ones_like(y[:, :1]), coder.dict_size)
    rows = rows / weights.clamp_min(torch.finfo(rows.dtype).tiny)
    fires = weights[:, 0] > 0
    usual = rows[fires].norm(dim=1).mean() if bool(fires.any()) else 1.0
    random = unit_rows(len(rows), rows.shape[1], generator).to(rows) * usual
    rows = torch.where(fires.unsqueeze(1), rows, random)
    decoded = backend_for(rows).decode(latents, rows) if isinstance(latents, SparseLatents) else latents @ rows
    length = decoded.pow(2).sum()
    return rows * ((residual * decoded).sum() / length if length > 0 else 1.0)


def _sums_by_latent(latents: Latents, rows: Tensor, dict_size: int) -> Tensor:
    """Returns for each latent the sum over tokens of value * row."""
    if isinstance(latents, Tensor):
        return latents.T @ rows
    with torch.enable_grad():  # the gradient of decoding is that sum
        weight = torch.zeros(dict_size, rows.shape[1], dtype=rows.dtype, device=rows.device, requires_grad=True)
        (grad,) = torch.autograd.grad((backend_for(weight).decode(latents, weight) * rows).sum(), weight)
    return grad


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
