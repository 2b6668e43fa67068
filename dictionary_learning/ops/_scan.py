"""A scan of all pre-activations of a batch for those that reach a bound.

Pre-activations are computed for as many tokens at a time as stay in the cache, and only those that
reach the bound are stored. Where bfloat16 products are fast, the scan is in bfloat16, and what it
finds is computed again in full precision.

Letters: B tokens, F latents, D activation, G groups of a token, P (token, latent) pairs found.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dictionary_learning._hardware import bfloat16_is_fast
from dictionary_learning.latents import Segments
from dictionary_learning.ops._pairs import READ_OFTEN, dots, sampled_product

_CHUNK_ELEMENTS = 6 << 20  # pre-activations held at once: they stay in the cache
_EFFICIENT_ROWS = 256  # tokens of a chunk at least, even if it then exceeds the cache, or products are slow
_MOST_BYTES = 1 << 26  # memory of a chunk at most, even if it then has fewer tokens
_GROUPS_FOR_EACH_KEPT = 4  # so many groups for each kept latent that few of the largest share one: a close bound
_SMALL_GROUPS_FOR_EACH_KEPT = 2
"""The same for groups below `_PART`, where the bound costs more than computing more candidates."""
_PART = 16  # larger groups are searched in parts of this size; smaller ones latent by latent
ROUNDING = 2.0**-9  # the largest relative error of a number rounded to bfloat16
SPREAD = 10.0  # standard deviations of a product's error by which the bound is lowered
SAFETY = 2.0  # how much larger the error of a latent that was not found may be than those seen
_MORE_THAN_ANY = 2**15 - 1
SAMPLE = 512  # latents from whose weights the size of the rounding errors is estimated


class Pairs(NamedTuple):
    """Pre-activations of (token, latent) pairs, all (P,), as the scan saw them and exact."""

    tokens: Tensor
    latents: Tensor
    seen: Tensor
    exact: Tensor

    @property
    def errors(self) -> Tensor:
        """The error of each product, beyond the rounding of the result."""
        return ((self.seen - self.exact).abs() - ROUNDING * self.exact.abs()).clamp_min(0)


class Chunk(NamedTuple):
    """Pre-activations of some tokens, as they are stored, and the maxima of parts and of groups."""

    rows: slice
    stored: Tensor  # (rows, F), padded to a multiple of the group size
    parts: Tensor  # (rows, G * parts)
    groups: Tensor  # (rows, G)


def chunk_rows(n_tokens: int, width: int, itemsize: int) -> int:
    """Returns the number of tokens in a chunk, of `width` latents with `itemsize` bytes each."""
    rows = min(max(_CHUNK_ELEMENTS // width, _EFFICIENT_ROWS), _MOST_BYTES // (width * itemsize))
    return max(1, min(n_tokens, rows))


class Scan:
    """Pre-activations of a batch, a chunk of tokens at a time.

    A group is every (F / group)-th latent, so that maxima are elementwise over long rows. bfloat16
    is compared as int16, which is faster: positive numbers are in the same order, and negative ones
    below them.
    """

    def __init__(self, x: Tensor, W: Tensor, b: Tensor, group: int):
        self.x, self.W, self.b, self.group = x, W, b, group
        self.is_coarse = x.dtype == torch.float32 and bfloat16_is_fast("cpu")
        self._part = _PART if group >= _PART else 1
        self._width = -(-len(W) // group) * group
        dtype = torch.bfloat16 if self.is_coarse else x.dtype
        self._x, weight, self._b = x.to(dtype), W.to(dtype), b.to(dtype)
        missing = self._width - len(W)
        if missing:  # latents that are never found fill up the last group
            weight = torch.cat([weight, weight.new_zeros(missing, W.shape[1])])
            self._b = torch.cat([self._b, self._b.new_full((missing,), -torch.inf)])
        self._weight = weight
        self._members = torch.arange(self._part) * (self._width // self._part)
        # errors of the terms of a product are independent: their squares add up
        sample = W[:: max(1, len(W) // SAMPLE)]
        spread = (x.square() @ sample.square().mean(0)).sqrt()  # (B,)
        self.bias_error = (b - self._b[: len(b)].to(b.dtype)).abs().amax()  # 0 in full precision
        self.slack = SPREAD * ROUNDING * spread if self.is_coarse else spread.mul(0.0)  # (B,); NaN stays NaN

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor]:
        """Activations, weight and bias, as they are multiplied."""
        return self._x, self._weight, self._b

    @staticmethod
    def group_size(n_latents: int, k: int) -> int:
        """Returns the number of latents of a group if k of each token are kept; 1 for none."""
        for group in (128, 64, 32, 16, 8, 4, 2):
            n_groups = k * (_GROUPS_FOR_EACH_KEPT if group >= _PART else _SMALL_GROUPS_FOR_EACH_KEPT)
            if group * n_groups <= n_latents:
                return group
        return 1

    def chunks(self, *, strided: bool = False) -> Iterator[Chunk]:
        """Yields the chunks, in the same memory; strided ones have tokens at equal distances."""
        n_chunks = -(-len(self.x) // chunk_rows(len(self.x), self._width, self._x.itemsize))
        n_rows = -(-len(self.x) // max(n_chunks, 1))
        place = self._x.new_empty(n_rows, self._width)
        for i in range(n_chunks):
            rows = slice(i, None, n_chunks) if strided else slice(i * n_rows, (i + 1) * n_rows)
            x = self._x[rows]
            pre = torch.addmm(self._b, x, self._weight.T, out=place[: len(x)])
            stored = pre.view(torch.int16) if self.is_coarse else pre
            parts = _maxima(stored, self._part)
            yield Chunk(rows, stored, parts, _maxima(parts, self.group // self._part))

    def values(self, stored: Tensor) -> Tensor:
        """Returns stored values as floats."""
        return stored.view(torch.bfloat16).to(self.x.dtype) if self.is_coarse else stored

    def bound(self, values: Tensor, rows: slice) -> Tensor:
        """Returns the bound (rows,), at least 0, that all reach whose exact value is as large.

        The bound of a token that is not finite is NaN: nothing is found for it.
        """
        slack = self.slack[rows]
        if self.is_coarse:
            values = values - slack - 2 * (ROUNDING * values + self.bias_error)
        return torch.where(slack.isfinite() & values.isfinite(), values.clamp_min(0), torch.nan)

    def reaching(self, chunk: Chunk, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns token, latent and stored value (P,) of all that reach the bound (rows,)."""
        least = bound
        if self.is_coarse:
            bits = bound.view(torch.int32) >> 16  # of bfloat16, rounded down
            least = torch.where(bound.isnan(), _MORE_THAN_ANY, bits).to(torch.int16)
        start, _, step = chunk.rows.indices(len(self.x))
        if self._part == 1:  # latent by latent
            hits = (chunk.stored >= least.unsqueeze(1)).view(-1).nonzero().squeeze(1)
            tokens = hits // self._width
            return tokens * step + start, hits - tokens * self._width, chunk.stored.view(-1).take(hits)
        # first the parts whose maximum reaches the bound, then their members
        tokens, parts = (chunk.parts >= least.unsqueeze(1)).nonzero().unbind(1)
        places = torch.add(parts, tokens, alpha=self._width).unsqueeze(1) + self._members  # (parts found, part)
        members = chunk.stored.view(-1).take(places)
        hits = (members >= least[tokens].unsqueeze(1)).view(-1).nonzero().squeeze(1)
        tokens = tokens[hits // self._part]
        latents = places.view(-1)[hits] - tokens * self._width
        return tokens * step + start, latents, members.view(-1)[hits]

    def exact(self, found: list[tuple[Tensor, Tensor, Tensor]], *, in_order: bool) -> Pairs:
        """Returns what `reaching` found in all chunks, in order if they were not strided."""
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
        """Returns an upper limit of pre-activations seen below the bound, by the largest error."""
        if not self.is_coarse:
            return bound
        # what is above 0 may have been seen below it: a bound of 0 may leave it out, too
        return torch.where(bound > 0, bound * (1 + ROUNDING), 0.0) + SAFETY * error + self.bias_error


class Table(NamedTuple):
    """Pairs with a row for each token; unused places hold -inf."""

    latents: Tensor  # (B, places)
    exact: Tensor  # (B, places)
    errors: Tensor  # the largest of each token (B,)
    overfull: Tensor  # which tokens have more pairs than places (B,): some of theirs are left out

    @classmethod
    def of(cls, pairs: Pairs, n_tokens: int, least: int, most: int) -> "Table":
        """Returns a table with `least` to `most` places per token, of pairs in order of token."""
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
    """Returns the maximum of each group of `size` columns: (rows, columns / size)."""
    return stored.view(len(stored), size, -1).amax(1) if size > 1 else stored
