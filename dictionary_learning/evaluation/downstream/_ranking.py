"""Which latents a sparse probe may use: they are ranked on the training texts alone.

Gurnee et al. 2023, https://arxiv.org/abs/2305.01610, section 4, compares such rankings.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from dictionary_learning.config import Registry
from dictionary_learning.evaluation.downstream._logistic import fit_l1_logistic

Ranking: TypeAlias = Callable[[Float[np.ndarray, "n dim"], Bool[np.ndarray, "n"]], Float[np.ndarray, "dim"]]
"""From the training examples and their class to a value of each column, the largest first."""

RANKINGS: Registry[Ranking] = Registry("ranking of latents")
_CANDIDATES = 512
"""Columns that L1 chooses among: those of the largest F."""
_L1_STRENGTH = 1.0


@RANKINGS.register("mean_difference")
def mean_difference(x: Float[np.ndarray, "n dim"], y: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "dim"]:
    """Returns |mean of the class - mean of the others| / mean of the absolute non-zero values.

    As in sae-probes 0.4; without the divisor, latents of large values come first.
    """
    size = np.abs(x).sum(0) / np.maximum((x != 0).sum(0), 1)
    return np.abs(x[y].mean(0) - x[~y].mean(0)) / np.where(size > 0, size, np.inf)


@RANKINGS.register("f_statistic")
def f_statistic(x: Float[np.ndarray, "n dim"], y: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "dim"]:
    """Returns F of an analysis of variance: the variance between the classes over that within."""
    groups = (x[y], x[~y])
    between = sum(len(g) * (g.mean(0) - x.mean(0)) ** 2 for g in groups)
    within = sum(((g - g.mean(0)) ** 2).sum(0) for g in groups) / max(len(x) - 2, 1)
    # a column that tells the classes without exception comes first, a constant one last
    return np.where(within > 0, between / np.where(within > 0, within, 1), np.where(between > 0, np.inf, 0))


@RANKINGS.register("l1")
def l1(x: Float[np.ndarray, "n dim"], y: Bool[np.ndarray, "n"]) -> Float[np.ndarray, "dim"]:
    """Returns |weight| of each standardized column in a logistic regression with an L1 penalty."""
    found = np.zeros(x.shape[1])
    chosen = best_columns(f_statistic(x, y), _CANDIDATES)
    part = x[:, chosen]
    scale = part.std(0)
    z = (part - part.mean(0)) / np.where(scale > 0, scale, np.inf)
    found[chosen] = np.abs(fit_l1_logistic(z, y, _L1_STRENGTH).weight)
    return found


def best_columns(values: Float[np.ndarray, "dim"], k: int) -> np.ndarray:
    """Returns the numbers of the k largest values, the largest first; of equal ones the first."""
    return np.argsort(-values, kind="stable")[:k]
