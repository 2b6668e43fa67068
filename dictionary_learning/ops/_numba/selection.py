"""Loops over pre-activations that look for the largest, compiled.

Each token has a table of candidates. A latent enters it if its pre-activation is above the token's
bound; a table that is full keeps what may be among the k largest, and the bound rises. So nearly
all pre-activations are read once, while they are in the cache, and compared with one number.

Numbers are compared by their bits: those of positive floats are in the same order as integers.
Tiles hold bits of float32 (`shift` 0) or of bfloat16 (`shift` 16); tables always those of float32.

Letters: B tokens, F latents, K kept, C places of a table, P pairs.
"""

import numpy as np

from dictionary_learning.ops._numba._compile import compiled, compiled_sums

_BLOCK = 32
_GROUPS_FOR_EACH_KEPT = 4  # so many groups for each kept latent that few of the largest share one
_FEWER_GROUPS = 2  # where there are too few latents for these
_MANY = 16  # a tile with fewer latents for each kept one has several candidates in most blocks
ROUNDING = np.float32(2.0**-9)  # the largest relative error of a number rounded to bfloat16


@compiled
def scan(tile, start, bits, latents, counts, bounds, slack, bias_error, shift, k, first, last):
    """Puts what is above a token's bound into its table, for tokens from `first` up to `last`.

    The tile (B, n) has latents from `start` on. `bits` and `latents` are (B, C), of which `counts`
    (B,) places are used; -1 for a table that was too small. `bounds` (B,) are bits as in the tile.
    """
    n_places, width = bits.shape[1], tile.shape[1]
    maxima = np.empty(width, tile.dtype)
    many = _MANY * k > width
    for n in range(first, last):
        row, bound, count = tile[n], bounds[n], counts[n]
        if count < 0:
            continue
        if start == 0:
            group_bound = bound_of_groups(row, k, maxima)
            if group_bound > 0:  # k are at least as large: the bound is below, so that they enter
                lowered = lower(np.int32(group_bound) << shift, slack[n], bias_error, shift)
                bound = max(bound, lowered if shift else lowered - 1)
        for begin in range(0, width, _BLOCK):
            end = min(begin + _BLOCK, width)
            largest = row[begin]
            for j in range(begin, end):
                largest = max(largest, row[j])
            if largest <= bound:
                continue
            if count + _BLOCK > n_places:
                count, bound = shrink(bits[n], latents[n], count, bound, slack[n], bias_error, shift, k)
                if count + _BLOCK > n_places:
                    count = -1
                    break
            if many:  # without a branch, which would often be guessed wrong
                for j in range(begin, end):
                    bits[n, count] = np.int32(row[j]) << shift
                    latents[n, count] = start + j
                    count += row[j] > bound
                continue
            for j in range(begin, end):
                if row[j] > bound:
                    bits[n, count] = np.int32(row[j]) << shift
                    latents[n, count] = start + j
                    count += 1
        counts[n] = count
        bounds[n] = bound


@compiled
def finish(bits, latents, counts, bounds, slack, bias_error, shift, k, first, last):
    """Shrinks all tables for the last time."""
    for n in range(first, last):
        if counts[n] > k:
            counts[n], bounds[n] = shrink(bits[n], latents[n], counts[n], bounds[n], slack[n], bias_error, shift, k)


@compiled
def shrink(bits, latents, n, bound, slack, bias_error, shift, k):
    """Keeps what may be among the k largest of n; returns their number and the new bound."""
    put_largest_first(bits, latents, n, k)
    smallest = bits[0]
    for i in range(1, k):
        smallest = min(smallest, bits[i])
    bound = max(bound, lower(smallest, slack, bias_error, shift))
    count = k
    if shift:
        for i in range(k, n):
            if bits[i] >> shift > bound:
                bits[count], latents[count] = bits[i], latents[i]
                count += 1
    return count, bound


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
def bound_of_groups(row, k, maxima):
    """Returns a number that k of a row reach at least: the k-th largest of maxima of groups.

    A group is every (n / size)-th latent. 0 where there are too few latents for groups.
    """
    size = max(row.shape[0] // (_GROUPS_FOR_EACH_KEPT * k), min(row.shape[0] // (_FEWER_GROUPS * k), 2))
    if size < 2:
        return np.int32(0)
    n_groups = row.shape[0] // size
    for j in range(n_groups):
        maxima[j] = row[j]
    for i in range(1, size):
        part = row[i * n_groups : (i + 1) * n_groups]
        for j in range(n_groups):
            maxima[j] = max(maxima[j], part[j])
    return np.int32(kth_largest(maxima, n_groups, k))


@compiled
def put_largest_first(bits, latents, n, k):
    """Moves the k largest of n entries to the front, in no order (Hoare's selection)."""
    low, high = 0, n - 1
    while low < high:
        a, b, c = bits[low], bits[(low + high) // 2], bits[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while bits[i] > pivot:
                i += 1
            while bits[j] < pivot:
                j -= 1
            if i <= j:
                bits[i], bits[j] = bits[j], bits[i]
                latents[i], latents[j] = latents[j], latents[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            return


@compiled
def kth_largest(bits, n, k):
    """Returns the k-th largest of n numbers, and changes their order."""
    low, high = 0, n - 1
    while low < high:
        a, b, c = bits[low], bits[(low + high) // 2], bits[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while bits[i] > pivot:
                i += 1
            while bits[j] < pivot:
                j -= 1
            if i <= j:
                bits[i], bits[j] = bits[j], bits[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break
    return bits[k - 1]


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
            worst = max(worst, abs(stored.view(np.float32) - ranked[i]) - ROUNDING * abs(ranked[i]))
            places[i] = latents[n, i]
        if count > k:
            put_largest_first(ranked, places, count, k)
        for i in range(min(count, k)):
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
        for begin in range(0, width, _BLOCK):
            end = min(begin + _BLOCK, width)
            largest = row[begin]
            for j in range(begin, end):
                largest = max(largest, row[j])
            if largest <= bound:
                continue
            for j in range(begin, end):
                if row[j] > bound:
                    tokens[count] = n
                    latents[count] = start + j
                    bits[count] = np.int32(row[j]) << shift
                    count += 1
    counts[first] = count - first * width
