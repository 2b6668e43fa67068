"""Error bars by a bootstrap over documents.

Tokens of one document are alike, so a figure is as uncertain as the number of documents makes it,
not the number of tokens. A resample draws as many documents as there are, with repetition; a figure
is computed from the sums of each resample. All dictionaries of a text have the same resamples, so
that differences between them are paired. Efron and Tibshirani 1993, chapters 6 and 13.
"""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.evaluation._record import Record

LEVEL = 0.95
"""Share of intervals that hold the true value."""
FEW_DOCUMENTS = 20
"""Documents below which an error bar is a rough guess."""
_SHARES = ("frac_alive", "frac_dense", "share_of_tokens", "share_of_error", "auc", "accuracy", "balanced_accuracy",
           "f1", "rate", "kept")  # fmt: skip
_SIZES = ("l0", "l1_loss", "l2_loss", "mse", "fvu", "l2_ratio", "n_alive", "kl", "ce_reconstructed", "ce_clean")
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_SHARES, (0.0, 1.0)),
    **dict.fromkeys(_SIZES, (0.0, math.inf)),
    **dict.fromkeys(("cossim", "cosine"), (-1.0, 1.0)),
    "frac_variance_explained": (-math.inf, 1.0),
}
"""Within which a figure is, and so is its interval."""
_ANY = (-math.inf, math.inf)
_ROUNDING = 1e-12
"""Spread of a figure, as a share of it, up to which it is one of rounding: sums are in float64."""
_LEAST_FINITE = 0.95
"""Share of resamples in which a figure must exist."""


@dataclasses.dataclass(frozen=True)
class ErrorBar(Record):
    """How uncertain a figure is, by other documents that might have been read."""

    standard_error: float
    low: float
    """The lower end of the 95 % interval, which need not have the figure in its middle."""
    high: float


def document_weights(n_groups: int, n_resamples: int, seed: int) -> Float[Tensor, "resamples groups"] | None:
    """Returns how often each resample has each group; None where nothing can be resampled."""
    if n_groups < 2 or n_resamples < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_groups, (n_resamples, n_groups), generator=generator)
    # float64 holds the counts, as the sums that they weigh are float64
    return torch.zeros(n_resamples, n_groups, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(n_resamples, n_groups, dtype=torch.float64)
    )


def error_bar(resampled: Float[Tensor, "resamples"], n_groups: int, name: str = "") -> ErrorBar | None:
    """Returns the spread of a figure over resamples; None where it exists in too few of them.

    Resamples vary a little less than new documents would, by the factor sqrt(1 - 1 / groups), for
    which the spread is corrected. The interval is wider by Student's t where groups are few, since
    the spread itself is then a guess; but it ends where figures of the name do.
    """
    finite = resampled[resampled.isfinite()]
    if len(finite) < max(2, _LEAST_FINITE * len(resampled)):
        return None
    widening = (n_groups / (n_groups - 1)) ** 0.5
    tail = (1 - LEVEL) / 2
    middle = finite.mean()
    tails = finite.quantile(torch.tensor([tail, 1 - tail], dtype=finite.dtype))
    ends = (middle + widening * _heavier_tails(n_groups) * (tails - middle)).clamp(*_RANGES.get(name, _ANY))
    spread = float(widening * finite.std())
    # where all documents have one value, resamples differ by rounding
    return ErrorBar(spread if spread > _ROUNDING * abs(float(middle)) else 0.0, *ends.tolist())


def wilson_bar(share: float, n: float) -> ErrorBar:
    """Returns the spread of a share of n things where resamples tell none.

    The ends are Wilson's (1927), which are within 0 and 1, and apart for a share of 1.
    """
    from scipy.stats import norm

    z = float(norm.ppf((1 + LEVEL) / 2))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    # rounding must not put an end of 0 or 1 beside the share
    return ErrorBar(half / z, min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share))


def chance_of(difference: float, standard_error: float, n_groups: int) -> float:
    """Returns the probability of a difference as large by chance: two-sided, Student's t."""
    from scipy.stats import t

    if not standard_error:  # of two that are the same on every document
        return float(difference == 0)
    return float(2 * t.sf(abs(difference) / standard_error, n_groups - 1))


def _heavier_tails(n_groups: int) -> float:
    """Returns how much wider Student's 95 % interval is than the normal one."""
    from scipy.stats import norm, t

    tail = (1 + LEVEL) / 2
    return float(t.ppf(tail, n_groups - 1) / norm.ppf(tail))
