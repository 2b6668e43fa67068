"""The largest pre-activations, found on the device without the host waiting for it.

1. The pre-activations of a chunk of tokens are computed, in bfloat16 where the device is fast at
   it.
2. The maximum of each group of 64 latents is found in one read of the chunk.
3. The K-th largest of those maxima is a bound that K latents reach. It is found bit by bit, in
   registers: positive floats are ordered as their bits. For a batch together it is read off the
   counts of each number's upper bits.
4. The latents that reach the bound, lowered by the possible rounding error, are the candidates:
   compacted into C places by prefix sums. Where they are fewer than K, others are added: the result
   is always K different latents.
5. Candidates are computed again in float32 and ranked. A fixed number of tokens, the least certain
   ones, are computed again in whole. How many others were uncertain is counted on the device.

Letters: B tokens, F latents, D activation, K kept, G groups of a token, C places for candidates of
    a token.
"""

from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from dictionary_learning._hardware import bfloat16_is_fast
from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops._precision import upcast
from dictionary_learning.ops._scan import ROUNDING, SAFETY, SAMPLE, SPREAD
from dictionary_learning.ops._selection import SURPLUS
from dictionary_learning.ops._triton import candidates
from dictionary_learning.ops._triton.candidates import Places
from dictionary_learning.ops._triton.certainty import NOTHING, clearance
from dictionary_learning.ops._triton.pairs import dots

_CHUNK_BYTES = 1 << 26
_GROUPS_FOR_EACH_KEPT = 4
_LARGEST_GROUP, _SMALLEST_GROUP = 64, 8
_MARGIN = 1.5  # places for candidates, for each kept latent
_LEAST_MARGIN = 16
_AGAIN = 128  # one token of this many may be computed again in whole


def top_k(x: Tensor, W: Tensor, b: Tensor, k: int, product: Tensor | None = None) -> tuple[SparseLatents, Tensor]:
    """Returns the k largest of relu(x W^T + b) of each row, and how many are uncertain."""
    x, n_tokens, n_latents = upcast(x).contiguous(), len(x), len(W)
    group = _group_size(n_latents, k)
    if not n_tokens or group < _SMALLEST_GROUP:
        values, indices = torch.addmm(upcast(b), x, upcast(W).T).topk(k, dim=-1, sorted=False)
        certain = torch.zeros((), dtype=torch.long, device=x.device)
        return SparseLatents(values.relu_(), Support(indices, n_latents)), certain
    scan = _Scan(x, W, b, group, product)
    n_places = triton.next_power_of_2(max(int(_MARGIN * k), k + _LEAST_MARGIN))
    places = Places.undefined(n_tokens * n_places, x.device)
    found, bound = torch.empty(n_tokens, dtype=torch.int32, device=x.device), torch.empty(n_tokens, device=x.device)
    for rows, pre, maxima in scan.chunks():
        listed = candidates.reaching(maxima, bound[rows], scan.slack[rows], k, scan.rounding)
        candidates.collect_each(
            pre, listed, bound[rows], group,
            first=rows.start, least=k, places=places, n_places=n_places, found=found[rows],
        )  # fmt: skip
    seen, exact = (t.view(n_tokens, n_places) for t in (places.seen, scan.exact(places)))  # (B, C)
    values, order = exact.topk(k, dim=-1, sorted=False)
    indices = places.latents.view(n_tokens, n_places).gather(1, order).long()
    clear = clearance(seen, exact, values, bound, found, scan.bias_error, is_coarse=scan.is_coarse)  # (B,)
    n_again = max(1, n_tokens // _AGAIN)
    again = clear.topk(n_again, largest=False).indices
    best = torch.addmm(upcast(b), x[again], upcast(W).T).topk(k, dim=-1, sorted=False)
    values, indices = values.index_copy(0, again, best.values), indices.index_copy(0, again, best.indices)
    uncertain = ((clear < 0).sum() - n_again).clamp_min(0)
    return SparseLatents(values.relu_(), Support(indices, n_latents)), uncertain


def batch_top_k(
    x: Tensor, W: Tensor, b: Tensor, n_kept: int, product: Tensor | None = None
) -> tuple[SparseLatents, Tensor]:
    """Returns the n_kept largest of relu(x W^T + b) of all rows, and 1 if uncertain, else 0.

    The number of pairs is always n_kept; where fewer are positive, the rest have the value 0. A row
    that is not finite keeps only such pairs. No pair is repeated. All pre-activations of the batch
    are held at once, in bfloat16 where that is fast.
    """
    x, n_tokens, n_latents = upcast(x).contiguous(), len(x), len(W)
    nothing = torch.zeros((), dtype=torch.long, device=x.device)
    n_kept = min(n_kept, n_tokens * n_latents)
    if not n_kept:
        empty, offsets = torch.zeros(0, dtype=torch.long, device=x.device), nothing.expand(n_tokens + 1).contiguous()
        return SparseLatents(x.new_zeros(0), Support(empty, n_latents, offsets)), nothing
    group = _group_size(n_latents, triton.cdiv(n_kept, n_tokens))
    if group < _SMALLEST_GROUP:
        return _whole_batch(x, W, b, n_kept), nothing
    scan = _Scan(x, W, b, group, product)
    (_, pre, maxima), *_ = scan.chunks(whole=True)
    wanted = int(SURPLUS * n_kept) + 1
    counts = torch.zeros(1 << 15, dtype=torch.int32, device=x.device)
    keys = _key(maxima.masked_fill(~_is_finite(scan.slack).unsqueeze(1), 0.0)).flatten()
    counts.index_add_(0, keys, torch.ones_like(keys))
    bound = scan.lowered(_cut(counts, wanted))
    # `wanted` maxima reach the bound; if a few tokens hold most large values, far more latents do:
    # these are counted
    listed = candidates.reaching(maxima, bound)
    counts.zero_()
    candidates.count(pre, listed, bound, group, counts)
    bound = bound.maximum(scan.lowered(_cut(counts, wanted)))
    found = candidates.count(pre, listed, bound, group).long()
    n_places = min(triton.next_power_of_2(2 * wanted), triton.next_power_of_2(n_tokens * n_latents))
    least = found + _shares((n_kept - found.sum()).clamp_min(0), n_latents - found)
    starts = least.cumsum(0) - least
    places = Places.unused(n_places, x.device)
    candidates.collect(pre, listed, bound, group, starts=starts, least=least, places=places)
    exact = scan.exact(places)
    # a row that is not finite is ranked last, but before unused places
    usable = _is_finite(exact) & _is_finite(bound[places.tokens])
    error = _errors(torch.where(usable, places.seen, torch.nan), exact)
    exact = torch.where(usable | (places.latents < 0), exact, torch.finfo(exact.dtype).min)
    chosen = exact.topk(n_kept, sorted=False).indices.sort().values  # in order of token, as candidates are
    values, latents = exact[chosen], places.latents[chosen].long()
    offsets = torch.searchsorted(places.tokens[chosen], torch.arange(n_tokens + 1, device=x.device, dtype=torch.int32))
    values = values.relu()
    certain = (values.amin() >= scan.limit(bound, error)) & (found.sum() <= n_places)
    uncertain = (~certain).sum()
    return SparseLatents(values, Support(latents, n_latents, offsets)), uncertain


class _Scan:
    """Pre-activations, maxima and rounding bounds, as `ops.scan.Scan`, without host reads."""

    def __init__(self, x: Tensor, W: Tensor, b: Tensor, group: int, product: Tensor | None):
        self.x, self.W, self.b, self.group = x, W.contiguous(), upcast(b), group
        self.is_coarse = bfloat16_is_fast(x.device.type)
        self._dtype = torch.bfloat16 if self.is_coarse else torch.float32
        self._product = product if product is not None and product.dtype == self._dtype else None  # (B, F)
        sample = upcast(W[:: max(1, len(W) // SAMPLE)])
        spread = (x.square() @ sample.square().mean(0)).sqrt()  # (B,)
        self.rounding = ROUNDING if self.is_coarse else 0.0
        # the bias is rounded too: a latent that is not found may be off by that, whatever errors
        # the others have
        self.bias_error = (self.b - self.b.to(self._dtype)).abs().amax()
        self.slack = SPREAD * self.rounding * spread + self.bias_error

    def chunks(self, *, whole: bool = False) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yields rows, pre-activations (rows, F) and group maxima (rows, G), in shared memory."""
        n_tokens, n_latents = len(self.x), len(self.W)
        if self._product is not None:
            yield slice(0, n_tokens), self._product, candidates.group_maxima(self._product, self.group)
            return
        x, W, b = self.x.to(self._dtype), self.W.to(self._dtype), self.b.to(self._dtype)
        size = n_tokens if whole else max(1, min(n_tokens, _CHUNK_BYTES // (n_latents * x.itemsize)))
        place = x.new_empty(size, n_latents)
        for start in range(0, n_tokens, size):
            rows = slice(start, min(start + size, n_tokens))
            pre = torch.addmm(b, x[rows], W.T, out=place[: rows.stop - start])
            yield rows, pre, candidates.group_maxima(pre, self.group)

    def lowered(self, value: Tensor) -> Tensor:
        """Returns the bound (B,) of a stored value, given the exact one; NaN if not finite."""
        bound = value - self.slack - 2 * self.rounding * value
        return bound.masked_fill(bound == 0, NOTHING) + (bound - bound)  # of what is not finite NaN

    def limit(self, bound: Tensor, error: Tensor) -> Tensor:
        """Returns an upper limit of pre-activations below the bound; 0 if none could be kept."""
        limit = bound + self.rounding * bound.abs()
        if self.is_coarse:
            limit = limit + SAFETY * error + self.bias_error
        return torch.where(limit > 2 * NOTHING, limit, 0.0)

    def exact(self, places: Places) -> Tensor:
        """Returns the exact values of the candidates; -inf in unused places."""
        if not self.is_coarse:
            return places.seen
        return dots(self.x, self.W, places.tokens, places.latents, self.b)


def _errors(seen: Tensor, exact: Tensor) -> Tensor:
    """Returns the largest error of the products of each row, beyond the rounding of the result."""
    errors = (seen - exact).abs() - ROUNDING * exact.abs()
    return errors.nan_to_num(0.0, 0.0, 0.0).clamp_min(0).amax(-1)


def _is_finite(x: Tensor) -> Tensor:
    """Returns `x.isfinite()`, which takes four launches."""
    return x - x == 0


def _shares(total: Tensor, room: Tensor) -> Tensor:
    """Returns the total split evenly among places of limited room, the excess to the first."""
    n = len(room)
    even = torch.minimum(total // n + (torch.arange(n, device=room.device) < total % n), room)
    left = room - even
    return even + (total - even.sum() - (left.cumsum(0) - left)).clamp_min(0).minimum(left)


def _key(values: Tensor) -> Tensor:
    """Returns the upper 16 bits of relu(values): whole numbers in the same order."""
    # adding zero turns a negative zero, whose sign bit is set, into a positive one
    return values.clamp_min(0).nan_to_num(0.0).float().add(0.0).view(torch.int32) >> 16


def _cut(counts: Tensor, wanted: int) -> Tensor:
    """Returns the largest number that `wanted` values reach, by counts of keys; 0 if fewer."""
    reached = counts.flip(0).cumsum(0).flip(0)
    key = ((reached >= wanted).sum() - 1).clamp_min(0)
    return (key.to(torch.int32) << 16).view(torch.float32)  # the least number with these upper bits


def _group_size(n_latents: int, k: int) -> int:
    """Returns the number of latents in a group where k of each token are kept."""
    group = _LARGEST_GROUP
    while group > 1 and group * _GROUPS_FOR_EACH_KEPT * k > n_latents:
        group //= 2
    return group


def _whole_batch(x: Tensor, W: Tensor, b: Tensor, n_kept: int) -> SparseLatents:
    """Returns the n_kept largest of all tokens by sorting, for many kept latents."""
    pre = torch.addmm(upcast(b), x, upcast(W).T).relu_()
    pre = torch.where(pre.isfinite().all(-1, keepdim=True), pre, 0.0).flatten()
    chosen = pre.topk(n_kept, sorted=False).indices.sort().values
    tokens = chosen // len(W)
    offsets = torch.searchsorted(tokens, torch.arange(len(x) + 1, device=x.device))
    return SparseLatents(pre[chosen], Support(chosen - tokens * len(W), len(W), offsets))
