"""Loops over pre-activations that look for the largest, compiled.

Each token has a table of candidates. A latent enters it if its pre-activation is above the token's
bound; a table that is full keeps what may be among the k largest, and the bound rises. So nearly
all pre-activations are read once, while they are in the cache, and compared with one number.

Numbers are compared by their bits: those of positive floats are in the same order as integers.
Tiles hold bits of float32 (`shift` 0) or of bfloat16 (`shift` 16); tables always those of float32.

Letters: B tokens, F latents, K kept, C places of a table, P pairs.
"""

import numpy as np

from dictionary_learning.ops._numba._bits import BLOCK, above, kth_largest, lowest, n_above
from dictionary_learning.ops._numba._compile import compiled, compiled_sums

_GROUPS_FOR_EACH_KEPT = 4  # so many groups for each kept latent that few of the largest share one
_SURPLUS = 16  # a k-th of so many latents may be above a first bound, beside the k largest
ROUNDING = np.float32(2.0**-9)  # the largest relative error of a number rounded to bfloat16


@compiled
def scan(tile, start, bits, latents, counts, bounds, slack, bias_error, shift, k, first, last):
    """Puts what is above a token's bound into its table, for tokens from `first` up to `last`.

    The tile (B, n) has latents from `start` on. `bits` and `latents` are (B, C), of which `counts`
    (B,) places are used; -1 for a table that was too small. `bounds` (B,) are bits as in the tile.
    """
    n_places, width = bits.shape[1], tile.shape[1]
    maxima = np.empty(width // 2, tile.dtype)
    for n in range(first, last):
        row, bound, count = tile[n], bounds[n], counts[n]
        if count < 0:
            continue
        if start == 0:
            reached = reached_by(row, k, maxima)
            if reached > 0:  # k are at least as large: the bound is below, so that they enter
                lowered = lower(np.int32(reached) << shift, slack[n], bias_error, shift)
                bound = max(bound, lowered if shift else lowered - 1)
        for begin in range(0, width, BLOCK):
            hits = above(row, begin, bound)
            if hits and count + BLOCK > n_places:
                count, bound = shrink(bits[n], latents[n], count, bound, slack[n], bias_error, shift, k)
                if count + BLOCK > n_places:
                    count = -1
                    break
            while hits:
                j = begin + lowest(hits)
                bits[n, count] = np.int32(row[j]) << shift
                latents[n, count] = start + j
                count += 1
                hits &= hits - 1
        counts[n] = count
        bounds[n] = bound


@compiled
def copy_columns(tile, columns, out, at, first, last):
    """Copies columns of a tile beside each other into `out`, from column `at` on."""
    for n in range(first, last):
        row, own = tile[n], out[n]
        for j in range(len(columns)):
            own[at + j] = row[columns[j]]


@compiled
def finish(bits, latents, counts, bounds, slack, bias_error, shift, k, first, last):
    """Shrinks all tables for the last time."""
    for n in range(first, last):
        if counts[n] > k:
            counts[n], bounds[n] = shrink(bits[n], latents[n], counts[n], bounds[n], slack[n], bias_error, shift, k)


@compiled
def shrink(bits, latents, n, bound, slack, bias_error, shift, k):
    """Keeps what may be among the k largest of n; returns their number and the new bound."""
    smallest = np.int32(kth_largest(bits[:n], k, shift, k))
    bound = max(bound, lower(smallest, slack, bias_error, shift))
    if not shift:
        return keep(bits, latents, n, smallest, k), bound
    count = 0
    for i in range(n):
        bits[count], latents[count] = bits[i], latents[i]
        count += bits[i] >> shift > bound
    return count, bound


@compiled
def keep(bits, latents, n, smallest, k):
    """Keeps the first k that are above the k-th largest or equal to it; returns their number."""
    count, n_equal = 0, k - n_above(bits[:n], smallest)
    for i in range(n):
        bits[count], latents[count] = bits[i], latents[i]
        is_equal = bits[i] == smallest and n_equal > 0
        count += bits[i] > smallest or is_equal
        n_equal -= is_equal
    return count


@compiled
def lower(bits, slack, bias_error, shift):
    """Returns a bound, in bits of the tile, that all are above whose exact value is as large.

    In full precision it is the value itself: what is equal to it need not be found.
    """
    if shift == 0:
        return bits
    whole = np.int32(bits)
    value = whole.view(np.float32)
    lowered = np.float32(value - slack - np.float32(2) * (ROUNDING * value + bias_error))
    if not lowered > 0:
        return np.int32(0)
    return max((lowered.view(np.int32) >> shift) - np.int32(1), np.int32(0))


@compiled
def reached_by(row, k, maxima):
    """Returns a number that at least k of a row reach, and few others; 0 if it is not positive.

    Where there are many latents for each kept one, at least k groups have such a maximum. A group
    is every (n / size)-th latent.
    """
    size = row.shape[0] // (_GROUPS_FOR_EACH_KEPT * k)
    if size > 1:
        n_groups = row.shape[0] // size
        for j in range(n_groups):
            maxima[j] = row[j]
        for i in range(1, size):
            part = row[i * n_groups : (i + 1) * n_groups]
            for j in range(n_groups):
                maxima[j] = max(maxima[j], part[j])
        row = maxima[:n_groups]
    return kth_largest(row, k, 8 * row.itemsize - 16, k + k // _SURPLUS)


@compiled
def write_exact(bits, latents, counts, values, indices, first, last):
    """Writes tables of exact values: zeros for what is missing, at latents that have none."""
    k = values.shape[1]
    for n in range(first, last):
        count = min(counts[n], k)
        for i in range(count):
            values[n, i] = bits[n, i]
            indices[n, i] = latents[n, i]
        latent = 0
        while 0 <= count < k:
            is_kept = False
            for i in range(count):
                is_kept |= indices[n, i] == latent
            if not is_kept:
                values[n, count] = 0
                indices[n, count] = latent
                count += 1
            latent += 1


@compiled_sums
def exact_of(mine, W, b, latents, count, out):
    """Writes x . W_i + b_i of the first latents of a table."""
    dim, i = len(mine), 0
    while i + 3 < count:
        row_a, row_b, row_c, row_d = W[latents[i]], W[latents[i + 1]], W[latents[i + 2]], W[latents[i + 3]]
        dot_a, dot_b, dot_c, dot_d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for j in range(dim):
            dot_a += mine[j] * row_a[j]
            dot_b += mine[j] * row_b[j]
            dot_c += mine[j] * row_c[j]
            dot_d += mine[j] * row_d[j]
        out[i], out[i + 1] = dot_a + b[latents[i]], dot_b + b[latents[i + 1]]
        out[i + 2], out[i + 3] = dot_c + b[latents[i + 2]], dot_d + b[latents[i + 3]]
        i += 4
    while i < count:
        row_a, dot_a = W[latents[i]], np.float32(0)
        for j in range(dim):
            dot_a += mine[j] * row_a[j]
        out[i] = dot_a + b[latents[i]]
        i += 1


@compiled
def write_ranked(x, W, b, bits, latents, counts, values, indices, errors, first, last):
    """Writes the k largest of each token by exact values, and the largest error of what was seen.

    The error is what is left beyond the rounding of a result. A token with fewer than k candidates
    gets -inf.
    """
    k, n_places = values.shape[1], bits.shape[1]
    ranked, places = np.empty(n_places, np.float32), np.empty(n_places, np.int32)
    for n in range(first, last):
        count, worst = max(counts[n], 0), np.float32(0)
        exact_of(x[n], W, b, latents[n], count, ranked)
        for i in range(count):
            stored = np.int32(bits[n, i])
            error = abs(stored.view(np.float32) - ranked[i]) - ROUNDING * abs(ranked[i])
            worst = worst if error <= worst else error  # one that is not a number stays
            places[i] = latents[n, i]
        if count > k:
            by_bits = ranked.view(np.int32)
            count = keep(by_bits, places, count, np.int32(kth_largest(by_bits[:count], k, 0, k)), k)
        for i in range(count):
            values[n, i], indices[n, i] = ranked[i], places[i]
        for i in range(count, k):
            values[n, i], indices[n, i] = -np.inf, 0
        errors[n] = worst


@compiled
def collect(tile, start, bounds, shift, tokens, latents, bits, counts, first, last):
    """Writes all pairs above the bounds (B,), in order of token, from place first * n on.

    Their number is written to `counts[first]`.
    """
    width = tile.shape[1]
    count = first * width
    for n in range(first, last):
        row, bound = tile[n], bounds[n]
        for begin in range(0, width, BLOCK):
            hits = above(row, begin, bound)
            while hits:
                j = begin + lowest(hits)
                tokens[count] = n
                latents[count] = start + j
                bits[count] = np.int32(row[j]) << shift
                count += 1
                hits &= hits - 1
    counts[first] = count - first * width
