"""Adam in one pass over the rows of a weight, with gradient projection, clipping and unit rows.

A row stays in the nearest cache from its projection to its normalization. As separate operations,
the same steps read and write weight, gradient and both means about three times.

Letters: R rows, D columns.
"""

import math

import numpy as np

from dictionary_learning.ops._numba._compile import compiled_sums


@compiled_sums
def squared_norms(gradient, weight, unit_rows, out, first, last):
    """Writes each row's squared norm, for unit rows without the part along the row."""
    dim = gradient.shape[1]
    for r in range(first, last):
        g, w = gradient[r], weight[r]
        square, along = np.float32(0), np.float32(0)
        for j in range(dim):
            square += g[j] * g[j]
        if unit_rows:
            for j in range(dim):
                along += g[j] * w[j]
            square = np.float32(0)  # of the difference: a difference of squares would cancel
            for j in range(dim):
                rest = g[j] - along * w[j]
                square += rest * rest
        out[r] = square


@compiled_sums
def step(weight, gradient, mean, mean_square, scale, rate, root, new1, new2, eps, unit_rows, first, last):
    """Updates rows in place. Gradients are multiplied by `scale`; they are not changed.

    `rate` is the learning rate over 1 - beta1^t, and `root` 1 over the root of 1 - beta2^t.
    """
    dim = weight.shape[1]
    for r in range(first, last):
        w, g, m, v = weight[r], gradient[r], mean[r], mean_square[r]
        along = np.float32(0)
        if unit_rows:
            for j in range(dim):
                along += g[j] * w[j]
        square = np.float32(0)
        for j in range(dim):
            rest = (g[j] - along * w[j]) * scale
            first_moment = m[j] + new1 * (rest - m[j])
            second_moment = v[j] + new2 * (rest * rest - v[j])
            new = w[j] - rate * first_moment / (math.sqrt(second_moment) * root + eps)
            m[j], v[j], w[j] = first_moment, second_moment, new
            square += new * new
        if unit_rows and square > 0:
            factor = np.float32(1) / math.sqrt(square)
            for j in range(dim):
                w[j] *= factor
