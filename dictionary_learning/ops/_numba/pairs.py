"""Sums and dot products over (token, latent) pairs, on rows of tables.

A segment is a run of pairs that belong to one row of the result. Its pairs are added in their
order, whatever the number of threads. Four are taken at once: the row is read and written less
often, and sums do not wait for each other.

Letters: S segments, P pairs, D columns.
"""

import numpy as np

from dictionary_learning.ops._numba._compile import compiled_sums


@compiled_sums
def sums(values, rows, offsets, table, out, first, last):
    """Writes the sum of value * row of the table for segments from `first` up to `last`: (S, D)."""
    dim = table.shape[1]
    for s in range(first, last):
        total = out[s]
        for j in range(dim):
            total[j] = 0
        p, end = offsets[s], offsets[s + 1]
        while p + 3 < end:
            a, b, c, d = values[p], values[p + 1], values[p + 2], values[p + 3]
            row_a, row_b, row_c, row_d = table[rows[p]], table[rows[p + 1]], table[rows[p + 2]], table[rows[p + 3]]
            for j in range(dim):
                total[j] += a * row_a[j] + b * row_b[j] + c * row_c[j] + d * row_d[j]
            p += 4
        while p < end:
            a, row_a = values[p], table[rows[p]]
            for j in range(dim):
                total[j] += a * row_a[j]
            p += 1


@compiled_sums
def dots(own, table, rows, offsets, order, out, first, last):
    """Writes own_s . table_row of each pair of the segments, to its place in `out` (P,)."""
    dim = table.shape[1]
    for s in range(first, last):
        mine = own[s]
        p, end = offsets[s], offsets[s + 1]
        while p + 3 < end:
            row_a, row_b, row_c, row_d = table[rows[p]], table[rows[p + 1]], table[rows[p + 2]], table[rows[p + 3]]
            dot_a, dot_b, dot_c, dot_d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for j in range(dim):
                dot_a += mine[j] * row_a[j]
                dot_b += mine[j] * row_b[j]
                dot_c += mine[j] * row_c[j]
                dot_d += mine[j] * row_d[j]
            out[order[p]], out[order[p + 1]] = dot_a, dot_b
            out[order[p + 2]], out[order[p + 3]] = dot_c, dot_d
            p += 4
        while p < end:
            row_a, dot_a = table[rows[p]], np.float32(0)
            for j in range(dim):
                dot_a += mine[j] * row_a[j]
            out[order[p]] = dot_a
            p += 1
