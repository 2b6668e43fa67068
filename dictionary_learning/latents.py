"""Sparse latents: values and indices of the few latents of each token that may be non-zero."""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._brief import brief


class Segments(NamedTuple):
    """The (token, latent) pairs of a support, sorted by latent."""

    order: Int[Tensor, "pairs"]
    """Position of each sorted pair in the flattened support."""
    tokens: Int[Tensor, "pairs"]
    latents: Int[Tensor, "pairs"]
    offsets: Int[Tensor, "latent_starts"]
    """The pairs of latent i are those from offsets[i] up to offsets[i + 1]."""

    __repr__ = brief

    @classmethod
    def of(cls, tokens: Int[Tensor, "pairs"], latents: Int[Tensor, "pairs"], dict_size: int) -> "Segments":
        """Sorts pairs by latent; those of the same latent keep their order."""
        # keys of fewer bytes are sorted in fewer passes
        narrow = next(t for t in (torch.int16, torch.int32, torch.int64) if dict_size <= torch.iinfo(t).max)
        keys, order = latents.to(narrow).sort(stable=True)
        in_order = keys.long()
        # not bincount: it reads the largest index, for which the host would have to wait
        offsets = torch.searchsorted(in_order, torch.arange(dict_size + 1, device=latents.device))
        return cls(order, tokens.index_select(0, order), in_order, offsets)


class Support:
    """The (token, latent) pairs that may be non-zero, in order of token.

    Every gradient that is summed by latent uses the same sort of the pairs, done when first needed.

    Args:
        indices: the latents of each token, no latent twice for the same token: (batch, k), or,
            where the number differs between tokens ("ragged"), (pairs,).
        dict_size: number of latents of the dictionary.
        offsets: for (pairs,): the pairs of token n are those from offsets[n] up to offsets[n + 1].
    """

    def __init__(
        self,
        indices: Int[Tensor, "batch k"] | Int[Tensor, "pairs"],
        dict_size: int,
        offsets: Int[Tensor, "token_starts"] | None = None,
    ):
        self.indices, self.dict_size, self._offsets = indices, dict_size, offsets
        self.is_ragged = offsets is not None
        """Whether the number of latents may differ between tokens."""
        self.n_tokens = len(indices) if offsets is None else len(offsets) - 1
        self._tokens: Tensor | None = None
        self._segments: Segments | None = None

    @property
    def latents(self) -> Int[Tensor, "pairs"]:
        """The latent of each pair."""
        return self.indices.flatten()

    @property
    def offsets(self) -> Int[Tensor, "token_starts"]:
        """The start of each token's pairs, and the number of pairs: (batch + 1,)."""
        if self._offsets is not None:
            return self._offsets
        n_tokens, k = self.indices.shape
        return torch.arange(n_tokens + 1, device=self.indices.device) * k

    # kept by hand: before Python 3.12 functools.cached_property holds a lock, and edits that are
    # sent to a server carry this class with them
    @property
    def tokens(self) -> Int[Tensor, "pairs"]:
        """The token of each pair."""
        if self._tokens is None:
            n_pairs, device = self.indices.numel(), self.indices.device
            if self._offsets is None:
                self._tokens = torch.arange(n_pairs, device=device) // max(self.indices.shape[1], 1)
            else:
                tokens = torch.arange(self.n_tokens, device=device)
                # with the output's size given, the host does not wait for the device
                self._tokens = torch.repeat_interleave(tokens, self._offsets.diff(), output_size=n_pairs)
        return self._tokens

    @property
    def segments(self) -> Segments:
        """The pairs sorted by latent, then by token, so that sums are deterministic."""
        if self._segments is None:
            self._segments = Segments.of(self.tokens, self.latents, self.dict_size)
        return self._segments


class SparseLatents(NamedTuple):
    """Values at a support. All other latents are zero; a value may be zero too."""

    values: Float[Tensor, "batch k"] | Float[Tensor, "pairs"]
    """In the shape of the support's indices."""
    support: Support

    __repr__ = brief

    @property
    def indices(self) -> Int[Tensor, "batch k"] | Int[Tensor, "pairs"]:
        """The latent of each value."""
        return self.support.indices

    @property
    def dict_size(self) -> int:
        """Number of latents of the dictionary."""
        return self.support.dict_size


Latents = Tensor | SparseLatents
"""Dense (batch, dict_size), or sparse."""


def to_dense(latents: Latents) -> Float[Tensor, "batch dict_size"]:
    """Returns latents as a dense tensor."""
    if isinstance(latents, Tensor):
        return latents
    support = latents.support
    dense = latents.values.new_zeros(support.n_tokens, support.dict_size)
    if support.is_ragged:
        return dense.index_put((support.tokens, support.latents), latents.values)
    return dense.scatter(1, latents.indices, latents.values)


def top_k_of(latents: SparseLatents, k: int) -> SparseLatents:
    """Returns the k largest latents of each token, of latents that are not ragged."""
    values, order = latents.values.topk(k, dim=-1, sorted=False)  # (batch, k)
    return SparseLatents(values, Support(latents.indices.gather(-1, order), latents.dict_size))


def nonzeros(latents: Latents) -> Tensor:
    """Returns all non-zero values, and maybe zeros: dense latents, or the sparse values."""
    return latents if isinstance(latents, Tensor) else latents.values


def entries_of(latents: Latents) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "n"]]:
    """Returns the values of the same, and the token and the latent of each."""
    if not isinstance(latents, Tensor):
        return latents.values.flatten(), latents.support.tokens, latents.support.latents
    token, latent = latents.nonzero().unbind(1)
    return latents[token, latent], token, latent


def l0(latents: Latents) -> Float[Tensor, ""]:
    """Returns the mean number of non-zero latents of a token."""
    return (nonzeros(latents) != 0).sum() / n_tokens_of(latents)


def firing_counts(latents: Latents) -> Int[Tensor, "dict_size"]:
    """Returns the number of tokens on which each latent is non-zero: kept zeros do not count."""
    if isinstance(latents, Tensor):
        return (latents != 0).sum(0)
    fired = (latents.values != 0).flatten()
    counts = torch.zeros(latents.dict_size, dtype=torch.long, device=fired.device)
    return counts.index_add_(0, latents.support.latents, fired.long())


def columns_of(latents: Latents, columns: Int[Tensor, "m"]) -> Float[Tensor, "batch m"]:
    """Returns the values of some latents on every token."""
    if isinstance(latents, Tensor):
        return latents[:, columns]
    if not len(columns):
        return latents.values.new_zeros(latents.support.n_tokens, 0)
    values, found, tokens = latents.values.flatten(), latents.support.latents, latents.support.tokens
    out = values.new_zeros(latents.support.n_tokens, len(columns))
    for number, column in enumerate(columns):
        there = found == column
        out[:, number] = out[:, number].index_add(0, tokens[there], values[there])
    return out


def replace_values(like: Latents, values: Tensor) -> Latents:
    """Returns latents with other values at the same places."""
    return values if isinstance(like, Tensor) else SparseLatents(values, like.support)


def detached(latents: Latents) -> Latents:
    """Returns the same values without the graph that computed them."""
    return latents.detach() if isinstance(latents, Tensor) else latents._replace(values=latents.values.detach())


def gather_per_latent(weights: Float[Tensor, "dict_size"], latents: Latents) -> Tensor:
    """Returns the weight of each latent in a shape that broadcasts with the latents' values."""
    if isinstance(latents, Tensor):
        return weights
    return weights[latents.support.latents].view_as(latents.values)


def n_tokens_of(latents: Latents) -> int:
    """Returns the number of tokens."""
    return latents.shape[0] if isinstance(latents, Tensor) else latents.support.n_tokens


def grouped(latents: SparseLatents, bounds: Int[Tensor, "groups"]) -> SparseLatents:
    """Returns the same pairs in rows of groups, ragged: row n * groups + g has group g of token n.

    Args:
        latents: latents of some tokens.
        bounds: the end of each group of latents; the last is dict_size.
    """
    support = latents.support
    group = torch.searchsorted(bounds, support.latents, right=True)  # (pairs,)
    row = support.tokens * len(bounds) + group
    row, order = row.sort(stable=True)
    offsets = torch.searchsorted(row, torch.arange(support.n_tokens * len(bounds) + 1, device=row.device))
    return SparseLatents(latents.values.flatten()[order], Support(support.latents[order], support.dict_size, offsets))


def slice_latents(latents: SparseLatents, start: int, stop: int) -> SparseLatents:
    """Returns the latents from `start` up to `stop`, renumbered from 0; ragged."""
    support = latents.support
    inside = ((support.latents >= start) & (support.latents < stop)).nonzero().squeeze(1)
    offsets = torch.searchsorted(support.tokens[inside], torch.arange(support.n_tokens + 1, device=inside.device))
    kept = Support(support.latents[inside] - start, stop - start, offsets)
    return SparseLatents(latents.values.flatten()[inside], kept)


def concat_latents(parts: list[SparseLatents]) -> SparseLatents:
    """Returns the latents of several dictionaries as those of one concatenated dictionary."""
    *shifts, dict_size = itertools.accumulate((part.dict_size for part in parts), initial=0)
    indices = [part.indices + shift for part, shift in zip(parts, shifts, strict=True)]
    if not any(part.support.is_ragged for part in parts):
        values = torch.cat([part.values for part in parts], dim=1)  # (batch, sum of k)
        return SparseLatents(values, Support(torch.cat(indices, dim=1), dict_size))
    tokens, order = torch.cat([part.support.tokens for part in parts]).sort(stable=True)  # (pairs,)
    latents = torch.cat([part.flatten() for part in indices])[order]
    values = torch.cat([part.values.flatten() for part in parts])[order]
    offsets = torch.searchsorted(tokens, torch.arange(parts[0].support.n_tokens + 1, device=tokens.device))
    return SparseLatents(values, Support(latents, dict_size, offsets))
