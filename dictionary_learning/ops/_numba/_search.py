"""The kept pre-activations, with compiled loops beside the product.

The product is computed for a block of latents and all tokens at a time, since a block of tokens
would read all of the weights again: 1.08 of the time of one product with 512 tokens at once, and
0.96 with 2,048 latents. What it finds is ranked as in `ops._selection`.

Letters: B tokens, F latents, D activation, K kept, C places of a table, P pairs.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops import _selection as plain
from dictionary_learning.ops._columns import Columns
from dictionary_learning.ops._numba import pairs, selection as loops
from dictionary_learning.ops._numba._threads import by_bounds, in_parts
from dictionary_learning.ops._precision import upcast
from dictionary_learning.ops._scan import Pairs, Scan

_TILE_BYTES = 16 << 20  # of pre-activations held at once: they stay in the cache
_MOST_ROWS = 4096  # tokens of a tile
_LEAST_LATENTS = 256  # of a tile, or products are slow
_PLACES = 2  # places of a table for each kept latent, and `_MORE_PLACES`
_MORE_PLACES = 64
_COARSE_PLACES = 4
_MORE_THAN_ANY = 2**31 - 1, 2**15 - 1


class _Tile(NamedTuple):
    start: int  # its first latent
    values: Tensor  # (B, n) of float32 or bfloat16
    bits: Any  # the same as integers


class _Product:
    """A product x W^T + b of which blocks of latents are computed, and what bounds its errors.

    `given` is the whole product, where it is known.
    """

    def __init__(self, x: Tensor, W: Tensor, b: Tensor, given: Tensor | None):
        self.of = Scan(x, W, b, 1)
        self.given = given if given is not None and given.dtype == self.of.operands[0].dtype else None
        self.shift = 16 if self.of.is_coarse else 0
        self.is_finite = bool(torch.linalg.vector_norm(W).add(torch.linalg.vector_norm(b)).isfinite())
        self.slack = self.of.slack.float()  # (B,); NaN for a token that is not finite
        self.bias_error = self.of.bias_error.float().numpy()[()]

    def tiles(self, columns: "_Kept | None" = None) -> Iterator[_Tile]:
        """Yields blocks of latents, of which some columns are kept."""
        x, weight, bias = self.of.operands
        if self.given is not None:
            yield self._tile(0, self.given)
            return
        row_bytes = max(len(x), 1) * x.itemsize
        n_tiles = -(-len(weight) // max(_TILE_BYTES // row_bytes, _LEAST_LATENTS))
        width = -(-len(weight) // n_tiles)
        for start in range(0, len(weight), width):
            stop = min(start + width, len(weight))
            tile = self._tile(start, _multiply(x, weight[start:stop], bias[start:stop]))
            if columns is not None:
                columns.add(tile)
            yield tile

    def _tile(self, start: int, values: Tensor) -> _Tile:
        return _Tile(start, values, values.view(torch.int16 if self.shift else torch.int32).numpy())

    def bounds(self) -> Tensor:
        """Returns bounds (B,) in bits: 0, or more than any for a token that is not finite."""
        none = torch.where(self.slack.isfinite(), 0, _MORE_THAN_ANY[bool(self.shift)])
        return none.to(torch.int32)

    def value(self, bounds: Tensor) -> Tensor:
        """Returns bounds as numbers."""
        return (bounds << self.shift).view(torch.float32)


class _Kept:
    """Collects columns of the tiles of a batch."""

    def __init__(self, columns: Columns):
        self._columns, self._parts = columns, list[Tensor]()

    def add(self, tile: _Tile) -> None:
        n, width = tile.values.shape
        latents = self._columns.latents
        if not tile.start:
            self._parts.append(tile.values.new_empty(n, len(latents)))
        first, last = torch.searchsorted(latents, torch.tensor([tile.start, tile.start + width])).tolist()
        out = self._parts[-1].view(torch.int16 if tile.values.itemsize == 2 else torch.int32)
        in_parts(loops.copy_columns, n, tile.bits, latents[first:last] - tile.start, out, first)

    def finish(self, n_tokens: int) -> None:
        """Hands the columns over, if they are of all tokens."""
        if sum(map(len, self._parts)) == n_tokens:
            self._columns.values = self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts)


def top_k(
    x: Tensor, W: Tensor, b: Tensor, k: int, product: Tensor | None = None, columns: Columns | None = None
) -> SparseLatents:
    """Returns the k largest of relu(x W^T + b) of each row; see `SparseBackend.select`."""
    weight, bias = upcast(W), upcast(b)
    values, indices = torch.empty(len(x), k), torch.empty(len(x), k, dtype=torch.long)
    kept = None if columns is None else _Kept(columns)
    for rows in torch.arange(len(x)).split(_MOST_ROWS) if len(x) else ():
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        given = None if product is None else product[part]
        doubtful = _top_k_of(_Product(x[part], weight, bias, given), values[part], indices[part], kept)
        if len(doubtful):
            doubtful = doubtful + part.start
            values[doubtful], indices[doubtful] = plain.whole(x[doubtful], weight, bias, k)
    if kept is not None:
        kept.finish(len(x))
    return SparseLatents(values.relu_(), Support(indices, len(W)))


def _top_k_of(product: _Product, values: Tensor, indices: Tensor, kept: _Kept | None) -> Tensor:
    """Writes the k largest of each row, and returns the rows for which these are not certain."""
    n, k = values.shape
    if not product.is_finite:
        return torch.arange(n)
    places = (_COARSE_PLACES if product.shift else _PLACES) * k + _MORE_PLACES
    bits, latents = torch.empty(n, places, dtype=torch.int32), torch.empty(n, places, dtype=torch.int32)
    counts, bounds = torch.zeros(n, dtype=torch.int32), product.bounds()
    errors = product.slack, product.bias_error, product.shift
    for tile in product.tiles(kept):
        in_parts(loops.scan, n, tile.bits, tile.start, bits, latents, counts, bounds, *errors, k)
    in_parts(loops.finish, n, bits, latents, counts, bounds, *errors, k)
    if not product.shift:
        in_parts(loops.write_exact, n, bits, latents, counts, values.view(torch.int32), indices)
        return (~product.slack.isfinite()).nonzero().squeeze(1)
    worst = torch.empty(n)
    x, W, b = product.of.x, product.of.W, product.of.b
    in_parts(loops.write_ranked, n, x, W.contiguous(), b, bits, latents, counts, values, indices, worst)
    least = values.amin(-1)
    certain = (least >= product.of.limit(product.value(bounds), worst)) & (least >= 0) & (counts >= 0)
    return (~certain).nonzero().squeeze(1)


def batch_top_k(
    x: Tensor, W: Tensor, b: Tensor, n_kept: int, product: Tensor | None = None, columns: Columns | None = None
) -> SparseLatents:
    """Returns the n_kept largest of x W^T + b of all rows together; see `ops._selection`."""
    kept = None if columns is None else _Kept(columns)
    found = _candidates(x, upcast(W), upcast(b), n_kept, product, kept) if len(x) and n_kept else None
    if kept is not None:
        kept.finish(len(x))
    if found is None:
        return plain.batch_top_k(x, W, b, n_kept)
    return plain.largest_pairs(*found, len(x), len(W), in_order=True)


def _candidates(
    x: Tensor, W: Tensor, b: Tensor, n_kept: int, given: Tensor | None, kept: _Kept | None
) -> tuple[Pairs, Tensor, int] | None:
    """Returns pairs among which are the n_kept largest, the least of them, and their number.

    None where that is not certain, and for a product that is not finite.
    """
    product, none = _Product(x, W, b, given), torch.zeros(0, dtype=torch.int32)
    if not product.is_finite or len(x) > _MOST_ROWS:
        return None
    bounds, held = product.bounds(), (none, none, none)
    for tile in product.tiles(kept):
        if not tile.start:
            bounds = _raised(product, bounds, _cut_of_groups(tile, n_kept))
        held = tuple(torch.cat(parts) for parts in zip(held, _above(tile, bounds, product.shift), strict=True))
        if len(held[0]) > 2 * n_kept:
            cut = _kth_largest(held[2].view(torch.float32), n_kept)
            bounds = _raised(product, bounds, cut)
            above = held[2] >> product.shift > bounds.index_select(0, held[0])
            above |= held[2] == cut.view(torch.int32)  # in full precision the bound is the cut itself
            above = above.nonzero().squeeze(1)
            held = tuple(part.index_select(0, above) for part in held)
    tokens, order = held[0].long().sort(stable=True)
    latents, seen = held[1].long()[order], held[2][order].view(torch.float32)
    exact = seen
    if product.shift:
        offsets = torch.searchsorted(tokens, torch.arange(len(x) + 1))
        exact = _exact(x, W, b, latents, offsets)
    found = Pairs(tokens, latents, seen, exact)
    n = min(n_kept, int((exact > 0).sum()))
    cut = _kth_largest(exact, n) if n else x.new_tensor(torch.inf)
    finite = product.slack.isfinite()
    bound = torch.where(finite, product.value(bounds), 0)
    worst = found.errors.amax() if product.shift and len(seen) else x.new_zeros(())
    limit = product.of.limit(bound, worst).amax()
    is_certain = not bool(limit > 0) or (n == n_kept and bool(cut >= limit))
    return (found, cut, n) if is_certain else None


def _raised(product: _Product, bounds: Tensor, cut: Tensor) -> Tensor:
    """Returns bounds that all are above whose exact value may reach the cut, a number."""
    value = cut.clamp_min(0).expand(len(bounds))
    if product.shift:
        value = value - product.slack - 2 * (loops.ROUNDING * value + product.bias_error)
    bits = torch.where(value > 0, value, 0.0).view(torch.int32) >> product.shift
    return torch.maximum(bounds, bits - 1 if product.shift else bits)


def _cut_of_groups(tile: _Tile, n_kept: int) -> Tensor:
    """Returns a number that n_kept of the tile exceed, by maxima of groups; 0 for none."""
    n, width = tile.values.shape
    size = n * width // (4 * n_kept)
    if size < 2:
        return torch.zeros(())
    groups = tile.values[:, : width // size * size].view(n, size, -1).amax(1).float().flatten()
    if len(groups) <= n_kept:
        return torch.zeros(())
    cut = _kth_largest(groups, n_kept + 1)  # the next smaller one: what equals the n-th must be above
    return torch.nan_to_num(cut, nan=0.0, posinf=0.0, neginf=0.0)


def _kth_largest(values: Tensor, k: int) -> Tensor:
    """Returns the k-th largest of some numbers, or another that just as many reach; at least 0."""
    return torch.tensor(loops.kth_largest(values.view(torch.int32).numpy(), k, 0, k), dtype=torch.int32).view(
        torch.float32
    )


def _above(tile: _Tile, bounds: Tensor, shift: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns token, latent and bits of all above the bounds, in no order."""
    n, width = tile.values.shape
    out = [torch.empty(n * width, dtype=torch.int32) for _ in range(3)]  # pages that are not written take no memory
    n_parts = max(1, min(torch.get_num_threads(), n // 64))
    starts = [n * i // n_parts for i in range(n_parts + 1)]
    counts = torch.zeros(n, dtype=torch.long)  # at the first row of each part
    by_bounds(loops.collect, itertools.pairwise(starts), tile.bits, tile.start, bounds, shift, *out, counts)
    used = [slice(first * width, first * width + int(counts[first])) for first in starts[:-1]]
    tokens, latents, bits = (torch.cat([whole[part] for part in used]) for whole in out)
    return tokens, latents, bits


def _exact(x: Tensor, W: Tensor, b: Tensor, latents: Tensor, offsets: Tensor) -> Tensor:
    """Returns x_n . W_i + b_i of pairs in order of token."""
    out = torch.empty(len(latents))
    places = torch.arange(len(latents))
    in_parts(pairs.dots, len(x), x, W, latents, offsets, places, out)
    return out.add_(b.index_select(0, latents))


def _multiply(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Returns x W^T + b, by oneDNN where PyTorch has it: 0.96 of the time of MKL in float32."""
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return torch.ops.mkldnn._linear_pointwise(x, W, b, "none", [], "")
    return torch.addmm(b, x, W.T)
