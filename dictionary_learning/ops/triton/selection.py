# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# (the language of kernels looks like Python, but has types of its own)
"""The largest pre-activations, on the device from beginning to end.

Letters: B tokens, F latents, D activation, K kept, G groups of a token, C candidates of a token.

1. Pre-activations of as many tokens as make a chunk, in bfloat16 where the device is fast at it.
2. The maximum of each 64 latents: one read of the chunk.
3. The K-th largest of those maxima is a bound that K latents reach. It is found bit by bit, in registers: a positive
   number's bits are in the order of the numbers. For a batch together it is read off the counts of each number's upper bits.
4. What reaches the bound, lowered by what rounding may do, are the candidates: compacted into C places by prefix sums.
5. Candidates are computed again in float32 and ranked. The tokens in greatest doubt, a fixed number of them, are computed again
   in whole; how many more were in doubt is counted, not looked at.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictionary_learning.hardware import bfloat16_is_fast
from dictionary_learning.latents import Support
from dictionary_learning.ops.joint import product_for
from dictionary_learning.ops.kernels import Selected
from dictionary_learning.ops.precision import full
from dictionary_learning.ops.triton.pairs import dots

_CHUNK_BYTES = 1 << 26
_GROUPS_FOR_EACH_KEPT = 4
_LARGEST_GROUP, _SMALLEST_GROUP = 64, 8
_BLOCK = 16
"""Groups that a program handles at once."""
_MARGIN = 1.5
"""Places for candidates, for each kept latent."""
_LEAST_MARGIN = 16
_ROUNDING = 2.0**-9
_SPREAD = 10.0
_SAFETY = 2.0
"""These are explained in `ops/scan.py`."""
_SAMPLE = 512
_AGAIN = 128
"""One token of so many may be computed again in whole."""
_SURPLUS = 1.1


def top_k(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Selected, Tensor]:
    """Returns the k largest of relu(x W^T + b) of each row, and of how many rows that is not certain."""
    x, n_tokens, n_latents = full(x).contiguous(), len(x), len(W)
    group = _group_size(n_latents, k)
    if not n_tokens or group < _SMALLEST_GROUP:
        values, indices = torch.addmm(full(b), x, full(W).T).topk(k, dim=-1, sorted=False)
        return Selected(values.relu_(), Support(indices, n_latents)), torch.zeros((), dtype=torch.long, device=x.device)
    scan = _Scan(x, W, b, group)
    places = triton.next_power_of_2(max(int(_MARGIN * k), k + _LEAST_MARGIN))
    candidates = torch.full((n_tokens, places), -1, dtype=torch.int32, device=x.device)
    seen = torch.full((n_tokens, places), -torch.inf, device=x.device)
    found = torch.empty(n_tokens, dtype=torch.int32, device=x.device)
    bound = torch.empty(n_tokens, device=x.device)
    for rows, pre, maxima in scan.chunks():
        bound[rows] = scan.lowered(_kth_largest(maxima, k), rows)
        _compact_rows(pre, maxima, bound[rows], group, candidates[rows], seen[rows], found[rows])
    exact = scan.exact(candidates, seen)
    values, order = exact.topk(k, dim=-1, sorted=False)
    indices = candidates.gather(1, order).long()
    least = values.amin(-1)
    clear = least - scan.limit(bound, _errors(seen, exact))
    # NaN, too few candidates and too many are the greatest doubt
    clear = torch.where(clear.isnan() | ~(least >= 0) | (found > places), -torch.inf, clear)
    n_again = max(1, n_tokens // _AGAIN)
    again = clear.topk(n_again, largest=False).indices
    best = torch.addmm(full(b), x[again], full(W).T).topk(k, dim=-1, sorted=False)
    values, indices = values.index_copy(0, again, best.values), indices.index_copy(0, again, best.indices)
    uncertain = ((clear < 0).sum() - n_again).clamp_min(0)
    return Selected(values.relu_(), Support(indices, n_latents)), uncertain


def batch_top_k(x: Tensor, W: Tensor, b: Tensor, n_kept: int) -> tuple[Selected, Tensor]:
    """Returns the n_kept largest of relu(x W^T + b) of all rows together, and of how many rows that is not certain.

    The number of pairs is n_kept in any case; where fewer are positive, the rest have the value 0. A row that is not finite
    keeps only such. All pre-activations of the batch are held at once, in bfloat16 where that is fast.
    """
    x, n_tokens, n_latents = full(x).contiguous(), len(x), len(W)
    nothing = torch.zeros((), dtype=torch.long, device=x.device)
    n_kept = min(n_kept, n_tokens * n_latents)
    if not n_kept:
        empty, offsets = torch.zeros(0, dtype=torch.long, device=x.device), nothing.expand(n_tokens + 1).contiguous()
        return Selected(x.new_zeros(0), Support(empty, n_latents, offsets)), nothing
    group = _group_size(n_latents, triton.cdiv(n_kept, n_tokens))
    if group < _SMALLEST_GROUP:
        return _whole_batch(x, W, b, n_kept), nothing
    scan = _Scan(x, W, b, group)
    (_, pre, maxima), *_ = scan.chunks(whole=True)
    wanted = int(_SURPLUS * n_kept) + 1
    counts = torch.zeros(1 << 15, dtype=torch.int32, device=x.device)
    counts.index_add_(0, _key(maxima).flatten(), torch.ones_like(maxima, dtype=torch.int32).flatten())
    bound = scan.lowered(_cut(counts, wanted).expand(n_tokens), slice(0, n_tokens))
    # so many maxima reach it; where a few tokens hold most of what is large, far more latents do: those are counted
    counts.zero_()
    found = torch.empty(n_tokens, dtype=torch.int32, device=x.device)
    _count(pre, maxima, bound, group, found, counts)
    bound = scan.lowered(_cut(counts, wanted).expand(n_tokens), slice(0, n_tokens))
    _count(pre, maxima, bound, group, found, None)
    places = min(triton.next_power_of_2(2 * wanted), triton.next_power_of_2(n_tokens * n_latents))
    starts = found.long().cumsum(0) - found
    tokens = torch.full((places,), 0, dtype=torch.int32, device=x.device)
    latents = torch.full((places,), -1, dtype=torch.int32, device=x.device)
    seen = torch.full((places,), -torch.inf, device=x.device)
    _compact_batch(pre, maxima, bound, group, starts, tokens, latents, seen)
    exact = scan.exact_pairs(tokens, latents, seen)
    exact = torch.where(exact.isnan(), -torch.inf, exact)
    n = min(n_kept, places)
    chosen = exact.topk(n, sorted=False).indices.sort().values  # in order of token, as candidates are
    values, tokens_kept, latents_kept = exact[chosen], tokens[chosen].long(), latents[chosen].long()
    missing = latents_kept < 0
    # what is missing to n_kept is made of pairs that are zero: they are put last, on the last token
    tokens_kept = torch.where(missing, n_tokens - 1, tokens_kept)
    latents_kept = torch.where(missing, 0, latents_kept)
    offsets = torch.searchsorted(tokens_kept, torch.arange(n_tokens + 1, device=x.device))
    limit = scan.limit(bound, _errors(seen, exact).amax())
    certain = (values.amin() >= limit) & (found.sum() <= places)
    uncertain = (~certain & (bound > 0)).sum()
    return Selected(values.relu(), Support(latents_kept, n_latents, offsets)), uncertain


class _Scan:
    """Pre-activations, their maxima, and what rounding may have done to them; as `ops.scan.Scan`, without looking."""

    def __init__(self, x: Tensor, W: Tensor, b: Tensor, group: int):
        self.x, self.W, self.b, self.group = x, W.contiguous(), full(b), group
        self.is_coarse = bfloat16_is_fast(x.device.type)
        self._dtype = torch.bfloat16 if self.is_coarse else torch.float32
        sample = full(W[:: max(1, len(W) // _SAMPLE)])
        spread = (x.square() @ sample.square().mean(0)).sqrt()
        self._slack = _SPREAD * _ROUNDING * spread if self.is_coarse else spread * 0.0

    def chunks(self, *, whole: bool = False) -> Any:
        """Yields rows, their pre-activations and the maxima of groups; each chunk takes the place of the one before."""
        n_tokens, n_latents = len(self.x), len(self.W)
        shared = product_for(self.x, self.W)
        if shared is not None and shared.dtype == self._dtype:
            yield slice(0, n_tokens), shared, _group_maxima(shared, self.group)
            return
        x, W, b = self.x.to(self._dtype), self.W.to(self._dtype), self.b.to(self._dtype)
        size = n_tokens if whole else max(1, min(n_tokens, _CHUNK_BYTES // (n_latents * x.itemsize)))
        place = x.new_empty(size, n_latents)
        for start in range(0, n_tokens, size):
            rows = slice(start, min(start + size, n_tokens))
            pre = torch.addmm(b, x[rows], W.T, out=place[: rows.stop - start])
            yield rows, pre, _group_maxima(pre, self.group)

    def lowered(self, values: Tensor, rows: slice) -> Tensor:
        """Returns the bound that all reach whose exact value is at least as large; NaN for a row that is not finite."""
        slack = self._slack[rows]
        if self.is_coarse:
            values = values - slack - 2 * _ROUNDING * values
        return torch.where(slack.isfinite() & values.isfinite(), values.clamp_min(0), torch.nan)

    def limit(self, bound: Tensor, error: Tensor) -> Tensor:
        """Returns what no pre-activation exceeds that was seen below the bound."""
        reached = bound * (1 + _ROUNDING) + _SAFETY * error if self.is_coarse else bound
        return torch.where(bound > 0, reached, 0.0)

    def exact(self, candidates: Tensor, seen: Tensor) -> Tensor:
        """Returns the exact values of candidates (B, C); -inf where there is none."""
        n_tokens, places = candidates.shape
        tokens = torch.arange(n_tokens * places, device=self.x.device) // places
        return self.exact_pairs(tokens, candidates.flatten(), seen.flatten()).view(n_tokens, places)

    def exact_pairs(self, tokens: Tensor, latents: Tensor, seen: Tensor) -> Tensor:
        """Returns the exact values of pairs; -inf where there is none."""
        if not self.is_coarse:
            return seen
        return dots(self.x, self.W, tokens, latents) + self.b[latents.clamp_min(0).long()]


def _errors(seen: Tensor, exact: Tensor) -> Tensor:
    """Returns by how much products were wrong, the largest of each row."""
    errors = (seen - exact).abs() - _ROUNDING * exact.abs()
    return torch.where(errors.isfinite(), errors, 0.0).clamp_min(0).amax(-1)


def _key(values: Tensor) -> Tensor:
    """Returns the upper bits of numbers that are not negative: whole numbers in the same order."""
    return values.clamp_min(0).nan_to_num(0.0).float().view(torch.int32) >> 16


def _cut(counts: Tensor, wanted: int) -> Tensor:
    """Returns the largest number that so many reach, given how many have each key; 0 if fewer do."""
    reached = counts.flip(0).cumsum(0).flip(0)
    return _number(((reached >= wanted).sum() - 1).clamp_min(0))


def _number(key: Tensor) -> Tensor:
    """Returns the least number with such upper bits."""
    return (key.to(torch.int32) << 16).view(torch.float32)


def _group_size(n_latents: int, k: int) -> int:
    """Returns how many latents to take for a group where k of each token are kept."""
    group = _LARGEST_GROUP
    while group > 1 and group * _GROUPS_FOR_EACH_KEPT * k > n_latents:
        group //= 2
    return group


def _whole_batch(x: Tensor, W: Tensor, b: Tensor, n_kept: int) -> Selected:
    """Returns the n_kept largest of all tokens by sorting: for so many kept that groups are too small to pay."""
    pre = torch.addmm(full(b), x, full(W).T).relu_()
    pre = torch.where(pre.isfinite().all(-1, keepdim=True), pre, 0.0).flatten()
    chosen = pre.topk(n_kept, sorted=False).indices.sort().values
    tokens = chosen // len(W)
    offsets = torch.searchsorted(tokens, torch.arange(len(x) + 1, device=x.device))
    return Selected(pre[chosen], Support(chosen - tokens * len(W), len(W), offsets))


def _group_maxima(pre: Tensor, group: int) -> Tensor:
    n_tokens, n_latents = pre.shape
    n_groups = triton.cdiv(n_latents, group)
    out = torch.empty(n_tokens, n_groups, device=pre.device)
    grid = (n_tokens, triton.cdiv(n_groups, _BLOCK))
    _maxima_kernel[grid](pre, out, pre.stride(0), n_latents, n_groups, _BLOCK, group)
    return out


def _kth_largest(maxima: Tensor, k: int) -> Tensor:
    """Returns the k-th largest of each row, rounded down to its upper bits; 0 where fewer are positive."""
    n_tokens, n_groups = maxima.shape
    out = torch.empty(n_tokens, device=maxima.device)
    _kth_kernel[(n_tokens,)](maxima, out, n_groups, k, triton.next_power_of_2(n_groups))
    return out


def _compact_rows(
    pre: Tensor, maxima: Tensor, bound: Tensor, group: int, out: Tensor, seen: Tensor, found: Tensor
) -> None:
    """Writes which latents reach the bound of their row, in order, as many as there are places, and counts all of them."""
    n_tokens, n_latents = pre.shape
    starts = torch.arange(n_tokens, device=pre.device) * out.shape[1]
    ends = starts + out.shape[1]
    nowhere = found  # the tokens of rows are known by their place
    _compact_kernel[(n_tokens,)](
        pre, maxima, bound, starts, ends, out, seen, nowhere, found,
        pre.stride(0), n_latents, maxima.shape[1], True, False, False, _BLOCK, group,
    )  # fmt: skip


def _count(pre: Tensor, maxima: Tensor, bound: Tensor, group: int, found: Tensor, counts: Tensor | None) -> None:
    """Counts what reaches the bound of each row, and how often each key is among it."""
    n_tokens, n_latents = pre.shape
    _compact_kernel[(n_tokens,)](
        pre, maxima, bound, found, found, found, bound, found if counts is None else counts, found,
        pre.stride(0), n_latents, maxima.shape[1], False, False, counts is not None, _BLOCK, group,
    )  # fmt: skip


def _compact_batch(
    pre: Tensor,
    maxima: Tensor,
    bound: Tensor,
    group: int,
    starts: Tensor,
    tokens: Tensor,
    latents: Tensor,
    seen: Tensor,
) -> None:
    """Writes tokens, latents and values of all that reach the bound of their row, one row after the other."""
    n_tokens, n_latents = pre.shape
    ends = torch.full_like(starts, len(latents))
    found = torch.empty(n_tokens, dtype=torch.int32, device=pre.device)
    _compact_kernel[(n_tokens,)](
        pre, maxima, bound, starts, ends, latents, seen, tokens, found,
        pre.stride(0), n_latents, maxima.shape[1], True, True, False, _BLOCK, group,
    )  # fmt: skip


@triton.jit
def _maxima_kernel(pre, out, STRIDE, F, G, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    latent = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    value = tl.load(pre + row * STRIDE + latent, mask=latent < F, other=float("-inf")).to(tl.float32)
    value = tl.where(value == value, value, float("-inf"))
    tl.store(out + row * G + group, tl.max(value, axis=1), mask=group < G)


@triton.jit
def _kth_kernel(maxima, out, G, K, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, WIDTH)
    value = tl.load(maxima + row * G + group, mask=group < G, other=0.0)
    key = tl.where(value > 0, value, 0.0).to(tl.int32, bitcast=True) >> 16
    key = tl.where(group < G, key, -1)
    best = 0
    for step in tl.static_range(15):
        candidate = best | (1 << (14 - step))
        enough = tl.sum((key >= candidate).to(tl.int32), axis=0) >= K
        best = tl.where(enough, candidate, best)
    tl.store(out + row, (best << 16).to(tl.float32, bitcast=True))


@triton.jit
def _compact_kernel(
    pre,
    maxima,
    bound,
    starts,
    ends,
    latents,
    seen,
    tokens,
    found,
    STRIDE,
    F,
    G,
    WRITES: tl.constexpr,
    WRITES_TOKENS: tl.constexpr,
    COUNTS_KEYS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    least = tl.load(bound + row)
    place = tl.zeros((), tl.int64)
    end = tl.zeros((), tl.int64)
    if WRITES:
        place += tl.load(starts + row)
        end += tl.load(ends + row)
    n_found = tl.zeros((), tl.int32)
    for first in range(0, G, BLOCK):
        group = first + tl.arange(0, BLOCK)
        reaching = tl.load(maxima + row * G + group, mask=group < G, other=float("-inf")) >= least
        if tl.max(reaching.to(tl.int32), axis=0) > 0:
            latent = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
            mask = reaching[:, None] & (latent < F)
            value = tl.load(pre + row * STRIDE + latent, mask=mask, other=float("-inf")).to(tl.float32)
            hit = mask & (value >= least)
            count = hit.to(tl.int32)
            in_group = tl.sum(count, axis=1)
            if WRITES:
                before = (tl.cumsum(in_group, axis=0) - in_group)[:, None] + tl.cumsum(count, axis=1) - count
                target = place + n_found + before
                writes = hit & (target < end)
                tl.store(latents + target, latent, mask=writes)
                tl.store(seen + target, value, mask=writes)
                if WRITES_TOKENS:
                    tl.store(tokens + target, tl.zeros_like(latent) + row.to(tl.int32), mask=writes)
            if COUNTS_KEYS:
                key = tl.where(value > 0, value, 0.0).to(tl.int32, bitcast=True) >> 16
                tl.atomic_add(tokens + key, 1, mask=hit)  # whole numbers: the order does not matter
            n_found += tl.sum(in_group, axis=0)
    tl.store(found + row, n_found)
