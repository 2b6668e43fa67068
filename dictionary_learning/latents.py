"""Sparse latents: the values of the few latents of each token that may be non-zero, and which they are."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Segments(NamedTuple):
    """The (token, latent) pairs of a support, sorted by latent."""

    order: Int[Tensor, "pairs"]
    """Position of each sorted pair in the flattened support."""
    tokens: Int[Tensor, "pairs"]
    latents: Int[Tensor, "pairs"]
    offsets: Int[Tensor, "dict_size+1"]
    """The pairs of latent i are those from offsets[i] up to offsets[i + 1]."""


class Support:
    """Which latents of each token may be non-zero.

    One sort by latent serves every gradient that is summed by latent, the firing counts included; it is made when the
    first of them asks for it.

    Args:
        indices: the latents of each token, (batch, k), no latent twice for the same token.
        dict_size: how many latents there are.
    """

    def __init__(self, indices: Int[Tensor, "batch k"], dict_size: int):
        self.indices = indices
        self.dict_size = dict_size
        self._segments: Segments | None = None

    @property
    def segments(self) -> Segments:
        """The pairs sorted by latent, in order of token within a latent: sums come out the same every time."""
        if self._segments is None:
            latents, order = self.indices.flatten().sort(stable=True)
            counts = torch.bincount(latents, minlength=self.dict_size)
            offsets = torch.zeros(self.dict_size + 1, dtype=torch.long, device=latents.device)
            torch.cumsum(counts, 0, out=offsets[1:])
            self._segments = Segments(order, order // self.indices.shape[1], latents, offsets)
        return self._segments

    def first(self, k: int) -> "Support":
        """Returns the support of the first k columns."""
        return self if k == self.indices.shape[1] else Support(self.indices[:, :k], self.dict_size)


class SparseLatents(NamedTuple):
    """Latents as values at a support; all others are zero, and a value may be zero too."""

    values: Float[Tensor, "batch k"]
    support: Support

    @property
    def indices(self) -> Int[Tensor, "batch k"]:
        """Which latents the values belong to."""
        return self.support.indices

    @property
    def dict_size(self) -> int:
        """How many latents there are."""
        return self.support.dict_size


Latents = Tensor | SparseLatents
"""Dense (batch, dict_size), or sparse."""


def to_dense(latents: Latents) -> Float[Tensor, "batch dict_size"]:
    """Returns the latents as one tensor with a column for each."""
    if isinstance(latents, Tensor):
        return latents
    dense = latents.values.new_zeros(latents.values.shape[0], latents.dict_size)
    return dense.scatter(1, latents.indices, latents.values)


def nonzeros(latents: Latents) -> Tensor:
    """Returns the values among which all non-zero ones are, in either form."""
    return latents if isinstance(latents, Tensor) else latents.values


def l0(latents: Latents) -> Float[Tensor, ""]:
    """Returns the mean number of non-zero latents of a token."""
    return (nonzeros(latents) != 0).sum(-1).float().mean()


def firing_counts(latents: Latents) -> Int[Tensor, "dict_size"]:
    """Returns on how many tokens each latent is non-zero. A latent that was kept with a value of zero did not fire."""
    if isinstance(latents, Tensor):
        return (latents != 0).sum(0)
    fired = (latents.values != 0).flatten()
    counts = torch.zeros(latents.dict_size, dtype=torch.long, device=fired.device)
    return counts.index_add_(0, latents.indices.flatten(), fired.long())


def fired(latents: Latents) -> Bool[Tensor, "dict_size"]:
    """Returns which latents are non-zero on at least one token."""
    return firing_counts(latents) > 0
