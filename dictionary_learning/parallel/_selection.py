"""The largest of values that are spread over ranks: of each row, and of all together."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning.parallel._ranks import Ranks

_HALF_BITS, _N_BINS = 16, 1 << 16
"""A float32 is looked up in two halves, each in one histogram."""


@torch.no_grad()
def kept_of_all(
    values: Float[Tensor, "batch candidates"], k: int, ranks: Ranks, most: int | None = None
) -> Bool[Tensor, "batch candidates"]:
    """Returns which of this rank's values are among the k largest of their row on all ranks.

    Exact: each rank gives its k largest values of a row, so that all know the k-th largest of all.
    Of values equal to it, those of the first ranks are kept. NaN is never kept. The host does not
    wait for an accelerator.

    Args:
        values: This rank's candidates, its k largest values of each row, or all if it has fewer.
        k: How many are kept of all ranks' values.
        ranks: The ranks that have the other values of the same rows.
        most: The largest number of candidates of a rank; k by default.
    """
    if ranks.size == 1 and values.shape[1] <= k:
        return torch.ones_like(values, dtype=torch.bool)
    width = k if most is None else min(most, k)
    own = values.detach().nan_to_num(-torch.inf).to(torch.float32)
    own = own if own.shape[1] <= width else own.topk(width, dim=1).values
    given = torch.nn.functional.pad(own, (0, width - own.shape[1]), value=-torch.inf)
    told = ranks.stack(given)  # (ranks, batch, width)
    everything = told.movedim(0, 1).flatten(1)  # (batch, ranks * width)
    if k >= everything.shape[1]:
        return values > -torch.inf
    least = everything.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)  # (batch, 1)
    n_level = k - (everything > least).sum(1, keepdim=True)  # places left for values equal to the least
    before = (told[: ranks.rank] == least).sum((0, 2)).unsqueeze(1)  # taken by those of earlier ranks
    compared = values.detach().to(torch.float32)
    level = compared == least
    return (compared > least) | (level & (level.cumsum(1) <= n_level - before))


def kth_largest(values: Float[Tensor, "n"], k: int, *groups: Ranks) -> Float[Tensor, ""]:
    """Returns the k-th largest of the values of all ranks, none of which is negative.

    If there are fewer, it is the smallest one, and infinite if there are none. With several groups,
    ranks of one have other values, and so have those of another for each of these.
    """
    if all(ranks.size == 1 for ranks in groups):
        if not len(values):
            return values.new_full((), float("inf"))
        return values.topk(min(k, len(values))).values.amin()
    # the bits of floats that are not negative have the order of the floats; NaN has a sign
    bits = (values.detach().float().nan_to_num(0.0, posinf=torch.inf).clamp_min(0) + 0.0).view(torch.int32).long()
    high, low = bits >> _HALF_BITS, bits & (_N_BINS - 1)
    counts = _histogram(high, groups)
    total = counts.sum()
    rank = total.clamp_max(k)  # counted from the largest, from 1
    top, above = _bin_of(counts, rank)
    least, _ = _bin_of(_histogram(low[high == top], groups), rank - above)
    found = ((top << _HALF_BITS) | least).int().view(torch.float32)
    return torch.where(total > 0, found, torch.inf).to(values.dtype)


def _histogram(halves: Tensor, groups: Sequence[Ranks]) -> Tensor:
    # not bincount: on CUDA the host would wait for it
    counts = torch.zeros(_N_BINS, dtype=torch.long, device=halves.device)
    counts.index_add_(0, halves, torch.ones_like(halves))
    for ranks in groups:
        counts = ranks.sum(counts)
    return counts


def _bin_of(counts: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the bin of the value with a rank counted from the largest, and how many are above."""
    from_top = counts.flip(0).cumsum(0)
    place = torch.searchsorted(from_top, rank.clamp_min(1)).clamp_max(len(counts) - 1)
    return len(counts) - 1 - place, from_top[place] - counts.flip(0)[place]
