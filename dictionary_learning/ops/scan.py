"""A look through all pre-activations of a batch that stops at none of them.

Pre-activations are computed for as many tokens at a time as stay in the cache; of those, only the ones that reach a bound
are kept. Where bfloat16 products are fast, they are looked through in bfloat16, and what was found is computed
again in full precision.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dictionary_learning.hardware import bfloat16_is_fast
from dictionary_learning.latents import Segments
from dictionary_learning.ops.pairs import READ_OFTEN, dots, sampled_product

_CHUNK_ELEMENTS = 6 << 20
"""Pre-activations held at once: they stay in the cache,"""
_EFFICIENT_ROWS = 256
"""unless that makes too few tokens for a product to be at its fastest,"""
_MOST_BYTES = 1 << 26
"""which is given up before so much memory is taken."""
_GROUPS_FOR_EACH_KEPT = 4
"""So many groups for each kept latent: few of the largest then share a group, and the bound is close to the K-th value."""
_SMALL_GROUPS_FOR_EACH_KEPT = 2
"""The same for groups below `_PART`, where finding the bound costs more than to compute more candidates."""
_LARGEST_GROUP = 128
_PART = 16
"""Within larger groups, what reaches the bound is looked for in parts of so many; in smaller ones, one by one."""
_ROUNDING = 2.0**-9
"""The largest relative error of a number rounded to bfloat16."""
_SPREAD = 10.0
"""Standard deviations of the error of a product by which the bound is lowered: so many that few tokens are computed twice."""
_SAFETY = 2.0
"""How much larger the error of a latent that was not found may be than the largest seen among those found for its token."""
_MORE_THAN_ANY = 2**15 - 1
_SAMPLE = 512
"""Latents whose weights tell how large the rounding errors of the products are."""


class Pairs(NamedTuple):
    """Pre-activations of (token, latent) pairs, as they were seen in the look through and as they are."""

    tokens: Tensor
    latents: Tensor
    seen: Tensor
    exact: Tensor

    @property
    def errors(self) -> Tensor:
        """Returns by how much each product was wrong, apart from the rounding of the result."""
        return _product_errors(self.seen, self.exact)


class Chunk(NamedTuple):
    """Some tokens' pre-activations, as they are stored."""

    rows: slice
    stored: Tensor
    """(rows, F)"""
    parts: Tensor
    """The maximum of each part of a group."""
    groups: Tensor
    """The maximum of each group."""


def chunk_rows(n_tokens: int, width: int, itemsize: int) -> int:
    """Returns how many tokens' pre-activations, of so many bytes for each latent, are held at once."""
    rows = min(max(_CHUNK_ELEMENTS // width, _EFFICIENT_ROWS), _MOST_BYTES // (width * itemsize))
    return max(1, min(n_tokens, rows))


class Scan:
    """Pre-activations of a batch, a chunk of tokens at a time.

    A group is every (F / group)-th latent, so that maxima are taken elementwise over long rows. bfloat16 is handled as whole
    numbers, which are faster to compare: positive ones are in the same order, and negative ones below them.

    Args:
        x: (B, D)
        W: (F, D)
        b: (F,)
        group: latents in a group.
    """

    def __init__(self, x: Tensor, W: Tensor, b: Tensor, group: int):
        self.x, self.W, self.b, self.group = x, W, b, group
        self.is_coarse = x.dtype == torch.float32 and bfloat16_is_fast("cpu")
        self._part = _PART if group >= _PART else 1
        self._width = -(-len(W) // group) * group
        dtype = torch.bfloat16 if self.is_coarse else x.dtype
        self._x, self._W, self._b = x.to(dtype), W.to(dtype), b.to(dtype)
        missing = self._width - len(W)
        if missing:
            self._W = torch.cat([self._W, self._W.new_zeros(missing, W.shape[1])])
            self._b = torch.cat([self._b, self._b.new_full((missing,), -torch.inf)])
        self._members = torch.arange(self._part) * (self._width // self._part)
        # errors of the terms of a product are independent: their squares add up
        sample = W[:: max(1, len(W) // _SAMPLE)]
        spread = (x.square() @ sample.square().mean(0)).sqrt()
        self._bias_error = (
            (b - self._b[: len(b)].to(b.dtype)).abs().amax()
        )  # as little as none, where it is not rounded
        self._slack = _SPREAD * _ROUNDING * spread if self.is_coarse else spread.mul(0.0)  # not a number stays so

    @staticmethod
    def group_size(n_latents: int, k: int) -> int:
        """Returns how many latents to take for a group where k of each token are kept; 1 for no groups."""
        group = _LARGEST_GROUP
        while (
            group > 1
            and group * k * (_GROUPS_FOR_EACH_KEPT if group >= _PART else _SMALL_GROUPS_FOR_EACH_KEPT) > n_latents
        ):
            group //= 2
        return group

    def chunks(self, *, strided: bool = False) -> Iterator[Chunk]:
        """Yields the chunks, each in the place of the one before; strided ones take tokens at equal distances."""
        n_chunks = -(-len(self.x) // chunk_rows(len(self.x), self._width, self._x.itemsize))
        n_rows = -(-len(self.x) // max(n_chunks, 1))
        place = self._x.new_empty(n_rows, self._width)
        for i in range(n_chunks):
            rows = slice(i, None, n_chunks) if strided else slice(i * n_rows, (i + 1) * n_rows)
            x = self._x[rows]
            pre = torch.addmm(self._b, x, self._W.T, out=place[: len(x)])
            stored = pre.view(torch.int16) if self.is_coarse else pre
            parts = _maxima(stored, self._part)
            yield Chunk(rows, stored, parts, _maxima(parts, self.group // self._part))

    def values(self, stored: Tensor) -> Tensor:
        """Returns the numbers that are stored."""
        return stored.view(torch.bfloat16).to(self.x.dtype) if self.is_coarse else stored

    def bound(self, values: Tensor, rows: slice) -> Tensor:
        """Returns the bound that surely all reach whose exact value is at least as large as these seem; never below zero.

        It is NaN for a token that is not finite: nothing is found for it.
        """
        slack = self._slack[rows]
        if self.is_coarse:
            values = values - slack - 2 * (_ROUNDING * values + self._bias_error)
        return torch.where(slack.isfinite() & values.isfinite(), values.clamp_min(0), torch.nan)

    def reaching(self, chunk: Chunk, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns token, latent and stored value of all that reach the bound of their token."""
        least = bound
        if self.is_coarse:
            bits = bound.view(torch.int32) >> 16  # of bfloat16, rounded down
            least = torch.where(bound.isnan(), _MORE_THAN_ANY, bits).to(torch.int16)
        start, _, step = chunk.rows.indices(len(self.x))
        if self._part == 1:
            hits = (chunk.stored >= least.unsqueeze(1)).view(-1).nonzero().squeeze(1)
            tokens = hits // self._width
            return tokens * step + start, hits - tokens * self._width, chunk.stored.view(-1).take(hits)
        tokens, parts = (chunk.parts >= least.unsqueeze(1)).nonzero().unbind(1)
        places = torch.add(parts, tokens, alpha=self._width).unsqueeze(1) + self._members
        members = chunk.stored.view(-1).take(places)
        hits = (members >= least[tokens].unsqueeze(1)).view(-1).nonzero().squeeze(1)
        tokens = tokens[hits // self._part]
        latents = places.view(-1)[hits] - tokens * self._width
        return tokens * step + start, latents, members.view(-1)[hits]

    def exact(self, found: list[tuple[Tensor, Tensor, Tensor]], *, in_order: bool) -> Pairs:
        """Returns what was found in all chunks, with its exact values.

        Args:
            found: what `reaching` returned for each chunk.
            in_order: whether tokens come in order, that is, chunks were not strided.
        """
        tokens, latents, stored = (torch.cat(parts) for parts in zip(*found, strict=True))
        seen = self.values(stored)
        if not self.is_coarse:
            return Pairs(tokens, latents, seen, seen)
        if in_order and len(tokens) >= READ_OFTEN * len(self.W):
            # W is read often enough to stay in the cache: no sort by latent is needed
            starts = torch.searchsorted(tokens, torch.arange(len(self.x) + 1))
            products = sampled_product(self.x, self.W, starts, latents)
        else:
            products = dots(self.x, self.W, Segments.of(tokens, latents, len(self.W)))
        return Pairs(tokens, latents, seen, products.add_(self.b.index_select(0, latents)))

    def limit(self, bound: Tensor, error: Tensor) -> Tensor:
        """Returns what no pre-activation exceeds that was seen below the bound, given the largest error seen."""
        if not self.is_coarse:
            return bound
        return torch.where(bound > 0, bound * (1 + _ROUNDING) + _SAFETY * error + self._bias_error, 0.0)


class Table(NamedTuple):
    """Pairs with a row for each token; places that are left over hold -inf."""

    latents: Tensor
    exact: Tensor
    errors: Tensor
    """The largest of each token."""
    overfull: Tensor
    """Which tokens have more pairs than there are places, some of which are left out."""

    @classmethod
    def of(cls, pairs: Pairs, n_tokens: int, least: int, most: int) -> "Table":
        """Makes a table with at least and at most so many places; the pairs are in order of token."""
        counts = torch.bincount(pairs.tokens, minlength=n_tokens)
        n_places = min(max(int(counts.max()), least), most)
        overfull = counts > n_places
        place = torch.arange(len(pairs.tokens)) - (counts.cumsum(0) - counts).index_select(0, pairs.tokens)
        if bool(overfull.any()):
            fitting = place < n_places
            place, pairs = place[fitting], Pairs(*(column[fitting] for column in pairs))
        place = torch.add(place, pairs.tokens, alpha=n_places)

        def spread(values: Tensor, rest: float) -> Tensor:
            return values.new_full((n_tokens * n_places,), rest).index_copy_(0, place, values).view(n_tokens, n_places)

        exact, errors = spread(pairs.exact, -torch.inf), spread(pairs.errors, 0.0).amax(1)
        return cls(spread(pairs.latents, 0), exact, errors, overfull)


def _maxima(stored: Tensor, size: int) -> Tensor:
    """Returns the maximum of each group of so many columns, which are far apart: an elementwise maximum of long rows."""
    return stored.view(len(stored), size, -1).amax(1) if size > 1 else stored


def _product_errors(seen: Tensor, exact: Tensor) -> Tensor:
    return ((seen - exact).abs() - _ROUNDING * exact.abs()).clamp_min(0)
