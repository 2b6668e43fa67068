"""Sums and dot products over (token, latent) pairs.

Every offset into a table is a 64-bit product: rows * D can exceed 2^31.

Letters: B tokens, F latents, D activation, P pairs. A segment is a run of pairs that belong to one
    row of the result.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 64  # pairs of one program, where segments may be long
_DOTS = 32  # dot products of one program


def dots(x: Tensor, W: Tensor, tokens: Tensor, latents: Tensor, b: Tensor | None = None) -> Tensor:
    """Returns x_n . W_i + b_i of each pair in float32: (P,); -inf where the latent is negative.

    With pairs in order of latent, each row of W is read from memory once.
    """
    out = torch.empty(len(tokens), device=x.device)
    if len(tokens):
        grid = (triton.cdiv(len(tokens), _DOTS),)
        columns = min(triton.next_power_of_2(x.shape[1]), 128)
        _dots_kernel[grid](
            x.contiguous(), W.contiguous(), tokens, latents, out if b is None else b, out,
            len(tokens), x.shape[1], b is not None, _DOTS, columns,
        )  # fmt: skip
    return out


def sums_of_short_segments(values: Tensor, rows: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """Returns the sum of value * row for each segment (segments, D); a program for each."""
    n, dim = len(offsets) - 1, table.shape[1]
    out = torch.empty(n, dim, device=table.device)
    if n:
        columns = _columns(dim)
        grid = (n, triton.cdiv(dim, columns))
        _segment_kernel[grid](values.contiguous(), rows, offsets, table.contiguous(), out, dim, columns)
    return out


def sums_of_any_segments(values: Tensor, rows: Tensor, keys: Tensor, offsets: Tensor, table: Tensor) -> Tensor:
    """Returns the same where segments may be long, as that of a latent which fires on every token.

    Each program handles 64 pairs, whatever segments (`keys`, ascending) they belong to, and writes
    the segments that it completes. A segment of several programs leaves partial sums, which a
    second pass adds up in order: no atomics, the same bits every time.
    """
    dim, n_pairs = table.shape[1], len(values)
    out = torch.zeros(len(offsets) - 1, dim, device=table.device)
    if n_pairs:
        columns, n_tiles = _columns(dim), triton.cdiv(n_pairs, _TILE)
        grid = (n_tiles, triton.cdiv(dim, columns))
        # for each tile: its partial sum of a segment that started before, and of one that starts in
        # it and goes on
        came_in = torch.empty(n_tiles, dim, device=table.device)
        goes_on = torch.empty(n_tiles, dim, device=table.device)
        _tile_kernel[grid](
            values.contiguous(), rows, keys, table.contiguous(), out, came_in, goes_on, n_pairs, dim, _TILE, columns
        )
        _join_kernel[grid](keys, offsets, out, came_in, goes_on, n_pairs, dim, _TILE, columns)
    return out


def _columns(dim: int) -> int:
    """Returns the columns of a program: a power of two that fits into registers."""
    return min(int(triton.next_power_of_2(dim)), 1024)


@triton.jit
def _dots_kernel(
    x, W, tokens, latents, b, out, P, D, HAS_BIAS: tl.constexpr, PAIRS: tl.constexpr, COLUMNS: tl.constexpr
):
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    there = pair < P
    token = tl.load(tokens + pair, mask=there, other=0).to(tl.int64)
    latent = tl.load(latents + pair, mask=there, other=-1).to(tl.int64)
    wanted = there & (latent >= 0)
    total = tl.zeros((PAIRS,), tl.float32)
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = wanted[:, None] & (column < D)[None, :]
        a = tl.load(x + token[:, None] * D + column[None, :], mask=mask, other=0.0).to(tl.float32)
        w = tl.load(W + latent[:, None] * D + column[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(a * w, axis=1)
    if HAS_BIAS:
        total += tl.load(b + latent, mask=wanted, other=0.0).to(tl.float32)
    tl.store(out + pair, tl.where(wanted, total, float("-inf")), mask=there)


@triton.jit
def _segment_kernel(values, rows, offsets, table, out, D, COLUMNS: tl.constexpr):
    segment = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < D
    start = tl.load(offsets + segment)
    end = tl.load(offsets + segment + 1)
    total = tl.zeros((COLUMNS,), tl.float32)
    for pair in range(start, end):
        row = tl.load(rows + pair).to(tl.int64)
        total += tl.load(values + pair) * tl.load(table + row * D + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + segment * D + column, total, mask=mask)


@triton.jit
def _tile_kernel(values, rows, keys, table, out, came_in, goes_on, P, D, TILE: tl.constexpr, COLUMNS: tl.constexpr):
    tile = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < D
    start = tile * TILE
    end = tl.minimum(start + TILE, P)
    before = tl.load(keys + start - 1, mask=start > 0, other=-1).to(tl.int64)
    after = tl.load(keys + end, mask=end < P, other=-1).to(tl.int64)
    current = tl.load(keys + start).to(tl.int64)
    total = tl.zeros((COLUMNS,), tl.float32)
    for pair in range(start, end):
        key = tl.load(keys + pair).to(tl.int64)
        if key != current:
            # only a tile's first segment can have come in from before
            if current == before:
                tl.store(came_in + tile * D + column, total, mask=mask)
            else:
                tl.store(out + current * D + column, total, mask=mask)
            total = tl.zeros((COLUMNS,), tl.float32)
            current = key
        row = tl.load(rows + pair).to(tl.int64)
        total += tl.load(values + pair) * tl.load(table + row * D + column, mask=mask, other=0.0).to(tl.float32)
    if current == before:
        tl.store(came_in + tile * D + column, total, mask=mask)
    elif current == after:
        tl.store(goes_on + tile * D + column, total, mask=mask)
    else:
        tl.store(out + current * D + column, total, mask=mask)


@triton.jit
def _join_kernel(keys, offsets, out, came_in, goes_on, P, D, TILE: tl.constexpr, COLUMNS: tl.constexpr):
    tile = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < D
    end = tl.minimum((tile + 1) * TILE, P)
    key = tl.load(keys + end - 1).to(tl.int64)
    first = tl.load(offsets + key)
    last = tl.load(offsets + key + 1)
    # the program of the tile in which a segment begins adds up its parts, if it goes on
    if (first >= tile * TILE) & (last > end):
        total = tl.load(goes_on + tile * D + column, mask=mask)
        for other in range(tile + 1, (last - 1) // TILE + 1):
            total += tl.load(came_in + other * D + column, mask=mask)
        tl.store(out + key * D + column, total, mask=mask)
