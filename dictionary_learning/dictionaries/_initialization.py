"""Initial weights, at random and from data.

Where ranks have slices of the latents, each builds its own. It draws what one process would draw,
in chunks, and keeps its rows; what is computed from a sample is summed over ranks.
"""

import contextlib
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._context import holding
from dictionary_learning.latents import Latents, SparseLatents, replace_values
from dictionary_learning.ops import backend_for
from dictionary_learning.parallel import ALONE, Ranks

if TYPE_CHECKING:
    from dictionary_learning.dictionaries._coder import Coder

_SCALE_SAMPLE = 2048
"""Tokens for the scale of the encoder."""
_FIT_SAMPLE = 8192
"""Tokens for the fit of a decoder."""
_LARGEST_SAMPLE = 32_768
"""Tokens for the geometric median, as in Gao et al. 2024 (A.1)."""
_AT_ONCE = 4096
"""Tokens whose distances to it are computed at a time."""


_CHUNK = 1 << 24
"""Values that are drawn at once where only some of them are kept."""
_BLOCK = 16
"""Values that torch.randn makes together: chunks of whole blocks are parts of one long draw."""
_BUILT: ContextVar[Ranks] = ContextVar("ranks among which the latents of new dictionaries are divided", default=ALONE)


def building_slices(ranks: Ranks) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which new coders hold this rank's slice of their latents."""
    return holding(_BUILT, ranks)


def ranks_of_new() -> Ranks:
    """Returns the ranks among which the latents of a new coder are divided."""
    return _BUILT.get()


def bounds(whole: int, number: int, n: int) -> tuple[int, int]:
    """Returns where one of n slices of the latents starts and ends."""
    return whole * number // n, whole * (number + 1) // n


def unit_rows(
    rows: int, columns: int, generator: torch.Generator | None = None, own: tuple[int, int] | None = None
) -> Float[Tensor, "own_rows columns"]:
    """Returns random rows of unit norm, uniform on the sphere; of so many, those of a stretch."""
    if own in (None, (0, rows)):
        return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator), dim=-1)
    assert own is not None
    kept = torch.empty(own[1] - own[0], columns)
    step, first = max(_CHUNK // columns // _BLOCK * _BLOCK, _BLOCK), 0
    while first < rows:
        last = min(first + step, rows)
        if (rows - last) * columns < _BLOCK:  # fewer would be drawn in another way
            last = rows
        drawn = torch.randn(last - first, columns, generator=generator)
        start, stop = max(own[0], first), min(own[1], last)
        if start < stop:
            kept[start - own[0] : stop - own[0]] = drawn[start - first : stop - first]
        first = last
    return torch.nn.functional.normalize(kept, dim=-1, out=kept)


def geometric_median(points: Float[Tensor, "n dim"], max_iter: int = 100, tol: float = 1e-5) -> Float[Tensor, "dim"]:
    """Returns the point with the least sum of distances to the given ones (smoothed Weiszfeld).

    y <- sum(x_i / d_i) / sum(1 / d_i),  d_i = max(|x_i - y|, eps)

    The floor eps, a millionth of the mean distance, keeps steps finite at a point. Of more than
    32,768 points an even subset is used. Computed in float32, and returned in the dtype of the
    points. Steps end when the sum of distances decreases by less than `tol` of itself.
    Weiszfeld 1937; smoothing as in Pillutla et al. 2022, https://arxiv.org/abs/1912.13445.
    """
    given = points.dtype
    if len(points) > _LARGEST_SAMPLE:
        points = points[torch.arange(_LARGEST_SAMPLE, device=points.device) * len(points) // _LARGEST_SAMPLE]
    points = points.float()
    median = points.mean(0)
    distances = _distances(points, median)
    floor = distances.mean() * 1e-6 + 1e-30  # where all points are equal, sums of 1 / floor stay finite
    total = distances.sum()
    for _ in range(max_iter):
        weights = 1 / distances.clamp_min(floor)
        median = weights @ points / weights.sum()
        distances = _distances(points, median)
        if total - distances.sum() <= tol * total:
            break
        total = distances.sum()
    return median.to(given)


def _distances(points: Float[Tensor, "n dim"], to: Float[Tensor, "dim"]) -> Float[Tensor, "n"]:
    # some at a time: a difference of all would take the memory of the points again, at each step
    return torch.cat([(part - to).norm(dim=-1) for part in points.split(_AT_ONCE)])


Selecting = Callable[["Coder", Tensor], contextlib.AbstractContextManager[object]]
"""In its `with` block a coder keeps of a sample what all ranks that have its latents would keep."""


def selects_alone(coder: "Coder", x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Returns a context for a coder that selects by itself, for each token."""
    return contextlib.nullcontext()


def best_scale(
    dictionary: "Coder",
    x: Float[Tensor, "n activation_dim"],
    y: Float[Tensor, "n output_dim"],
    selecting: Selecting = selects_alone,
) -> float:
    """Returns the s that minimizes |y - b_dec - s d|^2, where d is the initial W_dec^T latents.

    It is below 1 where kept latents have similar directions, so that unit rows overshoot.
    """
    x, y = x[:_SCALE_SAMPLE], y[:_SCALE_SAMPLE]
    with selecting(dictionary, x):
        latents, _ = dictionary.encode_latents(x)
    affine = dictionary.with_affine_part(torch.zeros_like(y), x)
    decoded = dictionary.decode_latents(latents, x) - affine
    length = decoded.pow(2).sum()
    scale = float(((y - affine) * decoded).sum() / length) if length > 0 else 1.0
    return scale if scale > 0 else 1.0  # a random decoder to another site may have a negative one


def fitted_decoder(
    coder: "Coder",
    x: Float[Tensor, "n activation_dim"],
    y: Float[Tensor, "n output_dim"],
    generator: torch.Generator | None,
    selecting: Selecting = selects_alone,
) -> Float[Tensor, "dict_size output_dim"]:
    """Returns rows s * sum_n f_i r / sum_n f_i^2 with r = y - b_dec: regressions on each latent.

    The common factor s, the best for all latents together, corrects for correlated latents. A
    latent that does not fire on the sample gets a random direction, with the mean norm of the other
    rows.
    """
    x, y, ranks = x[:_FIT_SAMPLE], y[:_FIT_SAMPLE], coder.latent_ranks
    with selecting(coder, x):
        latents, _ = coder.encode_latents(x)
    residual = y - coder.with_affine_part(torch.zeros_like(y), x)
    values = latents.values.square() if isinstance(latents, SparseLatents) else latents.square()
    squares = replace_values(latents, values)
    rows = _sums_by_latent(latents, residual, coder.dict_size)  # (dict_size, output_dim)
    weights = _sums_by_latent(squares, torch.ones_like(y[:, :1]), coder.dict_size)  # (dict_size, 1)
    rows = rows / weights.clamp_min(torch.finfo(rows.dtype).tiny)
    fires = weights[:, 0] > 0
    if ranks.size == 1:
        usual = rows[fires].norm(dim=1).mean() if bool(fires.any()) else 1.0
    else:
        n, total = ranks.sum(torch.stack([fires.sum().to(rows), rows[fires].norm(dim=1).sum()]))
        usual = total / n if n > 0 else 1.0
    whole, first = ranks.total(len(rows)), coder.first_latent
    random = unit_rows(whole, rows.shape[1], generator, (first, first + len(rows))).to(rows) * usual
    rows = torch.where(fires.unsqueeze(1), rows, random)
    decoded = backend_for(rows).decode(latents, rows) if isinstance(latents, SparseLatents) else latents @ rows
    decoded = ranks.add(decoded)
    length = decoded.pow(2).sum()
    return rows * ((residual * decoded).sum() / length if length > 0 else 1.0)


@torch.no_grad()
def mix_with_data_(
    coder: "Coder", y: Float[Tensor, "n output_dim"], share: float, generator: torch.Generator | None
) -> None:
    """Turns decoder rows towards data, in place, and keeps their norms: w / |w| becomes parallel to

        share * (y_i - y_j) / |y_i - y_j| + (1 - share) * w / |w|

    for two tokens i and j of each latent's own. In a difference, what all tokens have in common
    cancels. A row whose tokens are equal stays. The encoder becomes the transpose.
    """
    first, n, ranks = coder.first_latent, len(coder.W_dec), coder.latent_ranks
    whole = ranks.total(n)
    # each token as often as the others
    i = torch.cat([torch.randperm(len(y), generator=generator) for _ in range(-(-whole // len(y)))])[:whole]
    j = (i + torch.randint(1, len(y), (whole,), generator=generator)) % len(y)  # another one
    i, j = i[first : first + n].to(y.device), j[first : first + n].to(y.device)
    step = max(_CHUNK // coder.W_dec.shape[1], 1)
    for rows, one, other in zip(coder.W_dec.split(step), i.split(step), j.split(step), strict=True):
        norms = rows.norm(dim=1, keepdim=True)
        toward = torch.nn.functional.normalize(y[one] - y[other], dim=1)
        mixed = torch.nn.functional.normalize(share * toward + (1 - share) * rows / norms, dim=1) * norms
        rows.copy_(torch.where(toward.any(dim=1, keepdim=True), mixed, rows))
    if not coder.is_tied:
        coder.W_enc.copy_(coder.W_dec)


def _sums_by_latent(latents: Latents, rows: Tensor, dict_size: int) -> Tensor:
    """Returns the sum over tokens of value * row of each latent: (dict_size, width)."""
    if isinstance(latents, Tensor):
        return latents.T @ rows
    with torch.enable_grad():  # the gradient of a sparse decode is that sum
        weight = torch.zeros(dict_size, rows.shape[1], dtype=rows.dtype, device=rows.device, requires_grad=True)
        (grad,) = torch.autograd.grad((backend_for(weight).decode(latents, weight) * rows).sum(), weight)
    return grad


CENTERS: dict[str, Callable[[Tensor], Tensor]] = {
    "geometric_median": geometric_median,
    "mean": lambda x: x.mean(0),
    "zeros": lambda x: torch.zeros_like(x[0]),
}
"""Initial b_dec by name (`b_dec_init_method`)."""


@torch.no_grad()
def set_decoder_(
    W_dec: Tensor,
    *,
    norm: float,
    orthogonal: bool,
    generator: torch.Generator | None,
    first: int = 0,
    whole: int | None = None,
) -> None:
    """Sets decoder rows to one norm, in place.

    With `orthogonal`, new rows are drawn, of which each block of output_dim is orthogonal. Rows are
    those from `first` on of so many as `whole`, by default all.
    """
    if orthogonal:
        width, last = W_dec.shape[1], first + len(W_dec)
        for block in range(0, whole or len(W_dec), width):
            # the signs make Q uniform over rotations
            drawn = torch.randn(width, width, generator=generator)
            start, stop = max(first, block), min(last, block + width)
            if start < stop:
                q, r = torch.linalg.qr(drawn)
                W_dec[start - first : stop - first] = (q * r.diagonal().sign())[start - block : stop - block]
    W_dec.mul_(norm / W_dec.norm(dim=1, keepdim=True))
