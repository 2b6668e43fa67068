"""Letters that activations tell, and the latents that stand for them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dictionary_learning.evaluation.downstream._logistic import LinearProbe, fit_logistic
from dictionary_learning.evaluation.downstream._ranking import Ranking, best_columns


class Letter(NamedTuple):
    """A letter that the activations tell."""

    name: str
    truth: Bool[np.ndarray, "words"]
    probe: LinearProbe
    f1: float
    told: Bool[np.ndarray, "words"]
    """Test words of the letter that the probe tells right."""


def letters_told(
    x: Float[np.ndarray, "n dim"],
    letters: np.ndarray,
    is_test: Bool[np.ndarray, "n"],
    strength: float,
    least_f1: float,
    least_words: int,
) -> list[Letter]:
    """Returns the letters that a probe of the activations tells, with the probes."""
    scale = np.sqrt((x**2).mean())
    found: list[Letter] = []
    for letter in np.unique(letters):
        truth = letters == letter
        if not truth[~is_test].any() or truth[~is_test].all():
            continue
        probe = fit_logistic(x[~is_test] / scale, truth[~is_test], strength)
        says = probe.scores(x / scale) > 0
        f1 = _f1(truth[is_test], says[is_test])
        told = truth & is_test & says
        if f1 >= least_f1 and told.sum() >= least_words:
            found.append(Letter(str(letter), truth, probe, f1, told))
    return found


def _f1(truth: np.ndarray, says: np.ndarray) -> float:
    return float(2 * (truth & says).sum() / max(truth.sum() + says.sum(), 1))


def main_latents(
    train: Float[np.ndarray, "n_train dict_size"],
    test: Float[np.ndarray, "n_test dict_size"],
    truth: Bool[np.ndarray, "n"],
    is_test: Bool[np.ndarray, "n"],
    ranking: Ranking,
    most_main: int,
    least_gain: float,
    strength: float,
) -> tuple[list[int], float]:
    """Returns the latents of a letter, and the F1 of a probe of them on test words.

    Only latents that are larger on words of the letter can be its own.
    """
    y = truth[~is_test]
    values = ranking(train, y)
    values = np.where(train[y].mean(0) > train[~y].mean(0), values, -1.0)
    order = best_columns(values, min(most_main, train.shape[1]))
    best, n = -1.0, 0
    for k in range(1, len(order) + 1):
        part = train[:, order[:k]]
        scale = np.where(part.std(0) > 0, part.std(0), np.inf)
        probe = fit_logistic(part / scale, y, strength)
        f1 = _f1(truth[is_test], probe.scores(test[:, order[:k]] / scale) > 0)
        if k > 1 and f1 - best <= least_gain:
            break
        best, n = f1, k
    return [int(one) for one in order[:n]], best
