"""Kernels that find the few large pre-activations of each token in one read of all.

A chunk has a few hundred tokens, each with a program of its own, so the time is that of a program's
sequential work. One program lists all groups that reach the bound at once, and another visits only
those. Every offset into pre-activations is a 64-bit product: row * STRIDE can exceed 2^31.

Letters: B tokens, F latents, G groups of a token, K kept.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dictionary_learning.ops._triton.certainty import NOTHING

_BLOCK = 16  # groups of a program at once
_FILL = 256  # latents that a program reads at once when it has too few candidates


class Listed(NamedTuple):
    """The groups of each token that reach its bound, in order."""

    groups: Tensor  # (B, G); entries beyond the count are undefined
    counts: Tensor  # (B,)

    @classmethod
    def for_tokens_of(cls, maxima: Tensor) -> "Listed":
        return cls(torch.empty_like(maxima, dtype=torch.int32), maxima.new_empty(len(maxima), dtype=torch.int32))


class Places(NamedTuple):
    """Memory for candidates, all (places,); an unused place has the latent -1."""

    tokens: Tensor
    latents: Tensor
    seen: Tensor

    @classmethod
    def unused(cls, n: int, device: torch.device) -> "Places":
        """Returns places that are all unused."""
        tokens = torch.zeros(n, dtype=torch.int32, device=device)
        return cls(tokens, torch.full_like(tokens, -1), torch.full((n,), -torch.inf, device=device))

    @classmethod
    def undefined(cls, n: int, device: torch.device) -> "Places":
        """Returns memory for places that will all be written."""
        tokens = torch.empty(n, dtype=torch.int32, device=device)
        return cls(tokens, torch.empty_like(tokens), torch.empty(n, device=device))


def group_maxima(pre: Tensor, group: int) -> Tensor:
    """Returns the maximum of each `group` latents in float32: (B, G). NaN counts as -inf."""
    n_tokens, n_latents = pre.shape
    n_groups = triton.cdiv(n_latents, group)
    out = torch.empty(n_tokens, n_groups, device=pre.device)
    grid = (n_tokens, triton.cdiv(n_groups, _BLOCK))
    _maxima_kernel[grid](pre, out, pre.stride(0), n_latents, n_groups, _BLOCK, group)
    return out


def reaching(maxima: Tensor, bound: Tensor, slack: Tensor | None = None, k: int = 0, rounding: float = 0.0) -> Listed:
    """Returns the groups whose maximum reaches the bound (B,).

    With slack, the bound is written first: each token's K-th largest maximum, lowered. A token
    whose slack is not finite gets the bound NaN, which nothing reaches.
    """
    n_tokens, n_groups = maxima.shape
    listed, width = Listed.for_tokens_of(maxima), triton.next_power_of_2(n_groups)
    finds_bound = slack is not None
    _list_kernel[(n_tokens,)](
        maxima, slack if finds_bound else bound, bound, *listed,
        n_groups, k, rounding, NOTHING, finds_bound, width, num_warps=_warps(width),
    )  # fmt: skip
    return listed


def count(pre: Tensor, listed: Listed, bound: Tensor, group: int, keys: Tensor | None = None) -> Tensor:
    """Returns how many latents of each token reach its bound (B,); adds their keys' counts."""
    n_tokens, n_latents = pre.shape
    found = torch.empty(n_tokens, dtype=torch.int32, device=pre.device)
    nowhere = found if keys is None else keys
    _visit_kernel[(n_tokens,)](
        pre, *listed, bound, found, found, found, nowhere, found, bound, found,
        0, 0, pre.stride(0), n_latents, listed.groups.shape[1], False, 0, keys is not None, _BLOCK, group, _FILL,
    )  # fmt: skip
    return found


def collect(
    pre: Tensor, listed: Listed, bound: Tensor, group: int, *, starts: Tensor, least: Tensor, places: Places
) -> None:
    """Writes the latents of each token that reach its bound, in order, into unused places.

    Those of token n begin at starts[n]; latents that have no place are left out. Where fewer than
    least[n] reach the bound, others follow that do not. Rows of `pre` (B, F) may be strided.
    """
    n_places = torch.full_like(starts, len(places.latents))
    found = torch.empty(len(pre), dtype=torch.int32, device=pre.device)
    _visit_kernel[(len(pre),)](
        pre, *listed, bound, starts, n_places, least, *places, found,
        0, 0, pre.stride(0), pre.shape[1], listed.groups.shape[1], True, 0, False, _BLOCK, group, _FILL,
    )  # fmt: skip


def collect_each(
    pre: Tensor, listed: Listed, bound: Tensor, group: int, *,
    first: int, least: int, places: Places, n_places: int, found: Tensor,
) -> None:  # fmt: skip
    """Writes the same into as many places for each token, a power of two, and what is not used.

    `first` is the index of the first token, whose places follow those of the tokens before it.
    `found` (B,) gets the number of latents that reach the bound, also of those without a place.
    """
    _visit_kernel[(len(pre),)](
        pre, *listed, bound, found, found, found, *places, found,
        first, least, pre.stride(0), pre.shape[1], listed.groups.shape[1], True, n_places, False, _BLOCK, group, _FILL,
    )  # fmt: skip


def _warps(width: int) -> int:
    """Returns so many warps for a row that a thread has at most 16 entries in registers."""
    return min(max(width // 512, 4), 32)


@triton.jit
def _maxima_kernel(pre, out, STRIDE, F, G, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    latent = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    value = tl.load(pre + row * STRIDE + latent, mask=latent < F, other=float("-inf")).to(tl.float32)
    value = tl.where(value == value, value, float("-inf"))
    tl.store(out + row * G + group, tl.max(value, axis=1), mask=group < G)


@triton.jit
def _list_kernel(
    maxima, slack, bound, groups, counts, G, K, rounding, nothing, FINDS_BOUND: tl.constexpr, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, WIDTH)
    value = tl.load(maxima + row * G + group, mask=group < G, other=float("-inf"))
    if FINDS_BOUND:
        # the bits of positive numbers are in their order; the upper 16 of them will do
        key = tl.where(value > 0, value, 0.0).to(tl.int32, bitcast=True) >> 16
        best = 0
        for step in tl.static_range(15):
            candidate = best | (1 << (14 - step))
            enough = tl.sum((key >= candidate).to(tl.int32), axis=0) >= K
            best = tl.where(enough, candidate, best)
        kth = (best << 16).to(tl.float32, bitcast=True)
        least = kth - tl.load(slack + row) - 2 * rounding * kth
        least = tl.where(least == 0, nothing, least)
        least = tl.where(least - least == 0, least, float("nan"))  # the difference is NaN for what is not finite
        tl.store(bound + row, least)
    else:
        least = tl.load(bound + row)
    number = (value >= least).to(tl.int32)
    tl.store(groups + row * G + tl.cumsum(number, axis=0) - 1, group, mask=number > 0)
    tl.store(counts + row, tl.sum(number, axis=0))


@triton.jit
def _visit_kernel(
    pre, groups, counts, bound, starts, ends, at_least, tokens, latents, seen, found, first, least_of_each, STRIDE,
    F, G, WRITES: tl.constexpr, EACH: tl.constexpr, COUNTS_KEYS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
    FILL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token = (row + first).to(tl.int32)
    least = tl.load(bound + row)
    n_listed = tl.load(counts + row)
    if EACH:
        start = (row + first) * EACH
        end = start + EACH
        wanted = least_of_each
    else:
        start = tl.load(starts + row).to(tl.int64)
        end = tl.load(ends + row).to(tl.int64)
        wanted = tl.load(at_least + row).to(tl.int32)
    n_found = tl.zeros((), tl.int32)
    for begin in range(0, n_listed, BLOCK):
        index = begin + tl.arange(0, BLOCK)
        there = index < n_listed
        group = tl.load(groups + row * G + index, mask=there, other=0)
        latent = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        mask = there[:, None] & (latent < F)
        value = tl.load(pre + row * STRIDE + latent, mask=mask, other=float("-inf")).to(tl.float32)
        hit = mask & (value >= least)
        number = hit.to(tl.int32)
        in_group = tl.sum(number, axis=1)
        if WRITES:
            before = (tl.cumsum(in_group, axis=0) - in_group)[:, None] + tl.cumsum(number, axis=1) - number
            place = start + n_found + before
            written = hit & (place < end)
            tl.store(tokens + place, tl.zeros_like(latent) + token, mask=written)
            tl.store(latents + place, latent, mask=written)
            tl.store(seen + place, value, mask=written)
        if COUNTS_KEYS:
            key = tl.where(value > 0, value, 0.0).to(tl.int32, bitcast=True) >> 16
            tl.atomic_add(tokens + key, 1, mask=hit)  # whole numbers: the order does not matter
        n_found += tl.sum(in_group, axis=0)
    tl.store(found + row, n_found)
    if WRITES:
        n_written = n_found
        begin = tl.zeros((), tl.int32)
        while (n_written < wanted) & (begin < F):
            latent = begin + tl.arange(0, FILL)
            value = tl.load(pre + row * STRIDE + latent, mask=latent < F, other=0.0).to(tl.float32)
            miss = ((value >= least) == 0) & (latent < F)  # also where one of the two is not a number
            number = miss.to(tl.int32)
            place = n_written + tl.cumsum(number, axis=0) - number
            written = miss & (place < wanted) & (start + place < end)
            tl.store(tokens + start + place, tl.zeros_like(latent) + token, mask=written)
            tl.store(latents + start + place, latent, mask=written)
            tl.store(seen + start + place, value, mask=written)
            n_written += tl.sum(number, axis=0)
            begin += FILL
        if EACH:
            place = tl.arange(0, EACH)
            unused = place >= tl.maximum(tl.minimum(n_written, wanted), n_found)
            tl.store(tokens + start + place, tl.zeros_like(place) + token, mask=unused)
            tl.store(latents + start + place, tl.zeros_like(place) - 1, mask=unused)
            tl.store(seen + start + place, tl.full((EACH,), float("-inf"), tl.float32), mask=unused)
