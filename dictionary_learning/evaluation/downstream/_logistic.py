"""Logistic regression.

    least  |w|^2 / 2 + C * sum over examples of log(1 + exp(-y (<w, x> + b))),  y = -1 or 1

This is the objective of scikit-learn, and SciPy's L-BFGS its default optimizer; both are here
without the package. It is convex, so the result depends on neither seed nor start.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

_STEPS = 500
_TOLERANCE = 1e-6
"""Of the largest entry of the gradient, divided by C and the examples."""
_LEAST_SCALE = 1e-10
"""Columns that vary less, relative to their largest value, are constant but for rounding."""


class LinearProbe(NamedTuple):
    """A class is told by sign(<weight, x> + bias)."""

    weight: Float[np.ndarray, "dim"]
    bias: float

    def scores(self, x: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n"]:
        """Returns the log odds of the class."""
        return x @ self.weight + self.bias


def fit_probe(
    x: Float[np.ndarray, "n dim"], y: Bool[np.ndarray, "n"], strengths: Sequence[float], *, n_folds: int = 4
) -> LinearProbe:
    """Returns a probe of standardized columns, in the units of the columns that were given.

    Args:
        x: examples.
        y: which belong to the class; some do and some do not.
        strengths: values of C, of which that with the least log loss in cross-validation is taken.
        n_folds: the parts of the cross-validation; fewer where a class has fewer examples.
    """
    mean = x.mean(0)
    scale = x.std(0)
    scale = np.where(scale > _LEAST_SCALE * np.abs(x).max(0), scale, np.inf)
    z = (x - mean) / scale
    probe = fit_logistic(z, y, _best_strength(z, y, strengths, n_folds))
    weight = probe.weight / scale
    return LinearProbe(weight, probe.bias - float(mean @ weight))


def fit_logistic(
    x: Float[np.ndarray, "n dim"], y: Bool[np.ndarray, "n"], strength: float, start: LinearProbe | None = None
) -> LinearProbe:
    """Returns the probe of the least loss, of columns as they are; one that is near saves steps."""
    sign = np.where(y, 1.0, -1.0)
    scale = strength * len(x)

    def loss(packed: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = packed[:-1], packed[-1]
        margin = sign * (x @ w + b)
        slope = -sign * _sigmoid(-margin) / len(x)  # (n,)
        value = np.logaddexp(0, -margin).mean() + w @ w / (2 * scale)
        return value, np.append(x.T @ slope + w / scale, slope.sum())

    first = np.zeros(x.shape[1] + 1) if start is None else np.append(start.weight, start.bias)
    found = _least(loss, first)
    return LinearProbe(found[:-1], float(found[-1]))


def fit_l1_logistic(x: Float[np.ndarray, "n dim"], y: Bool[np.ndarray, "n"], strength: float) -> LinearProbe:
    """Returns the probe of the least loss with |w|_1 in place of |w|^2 / 2.

    w = u - v with u, v >= 0, so that L-BFGS with bounds finds weights that are 0.
    """
    n, dim = x.shape
    sign = np.where(y, 1.0, -1.0)
    penalty = 1 / (strength * n)

    def loss(packed: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = packed[:dim] - packed[dim:-1], packed[-1]
        margin = sign * (x @ w + b)
        slope = -sign * _sigmoid(-margin) / n
        g = x.T @ slope
        value = np.logaddexp(0, -margin).mean() + penalty * packed[:-1].sum()
        return value, np.concatenate([g + penalty, penalty - g, [slope.sum()]])

    found = _least(loss, np.zeros(2 * dim + 1), [(0, None)] * (2 * dim) + [(None, None)])
    return LinearProbe(found[:dim] - found[dim:-1], float(found[-1]))


def _least(loss: Callable[[np.ndarray], tuple[float, np.ndarray]], first: np.ndarray, bounds: Any = None) -> np.ndarray:
    """Returns where a convex function is least; it returns its gradient too."""
    from scipy.optimize import minimize  # takes longer to import than the rest of this package

    options = {"maxiter": _STEPS, "gtol": _TOLERANCE, "ftol": 0}
    return minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(x / 2)) / 2


def _best_strength(x: np.ndarray, y: np.ndarray, strengths: Sequence[float], n_folds: int) -> float:
    """Returns the value of C with the least log loss on examples that were left out."""
    n_folds = min(n_folds, int(y.sum()), int((~y).sum()))
    if len(strengths) == 1 or n_folds < 2:
        return strengths[len(strengths) // 2]
    fold = np.empty(len(y), dtype=int)
    for which in (True, False):  # examples are in random order already
        fold[y == which] = np.arange((y == which).sum()) % n_folds
    losses = [0.0] * len(strengths)
    for part in range(n_folds):
        kept, left, probe = fold != part, fold == part, None
        for number, strength in enumerate(strengths):
            probe = fit_logistic(x[kept], y[kept], strength, probe)
            margin = np.where(y[left], 1.0, -1.0) * probe.scores(x[left])
            losses[number] += float(np.logaddexp(0, -margin).sum())
    return strengths[int(np.argmin(losses))]
