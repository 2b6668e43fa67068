"""How well a probe tells a class, over resamples of the texts.

Each figure is of weights (resamples, n), which say how often a resample has each text. A resample
without one of the classes has no figure, NaN.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Weights = Float[Tensor, "resamples n"]


def figures_of(scores: Float[np.ndarray, "n"], truth: Bool[np.ndarray, "n"], weights: Weights) -> dict[str, Tensor]:
    """Returns each figure over resamples.

    * `auc` = share of (text of the class, other text) pairs where the first has the larger score;
      ties half.
    * `accuracy` = share of texts whose score has the sign of their class.
    * `balanced_accuracy` = mean of the shares that are told right in either class.
    * `f1` = mean over both classes, weighted by their texts, of 2 TP / (2 TP + FP + FN).

    From 0 to 1, higher is better. A probe that knows nothing has 0.5 of the first and third.
    """
    y, told = torch.from_numpy(truth.astype(np.float64)), torch.from_numpy((scores > 0).astype(np.float64))
    yes, no = weights @ y, weights @ (1 - y)  # (resamples,)
    right_yes, right_no = weights @ (y * told), weights @ ((1 - y) * (1 - told))
    n, both = yes + no, (yes > 0) & (no > 0)
    f1_yes = 2 * right_yes / (yes + weights @ told)
    f1_no = 2 * right_no / (no + weights @ (1 - told))
    found = {
        "auc": _auc(scores, y, weights),
        "accuracy": (right_yes + right_no) / n,
        "balanced_accuracy": (right_yes / yes + right_no / no) / 2,
        "f1": (yes * f1_yes + no * f1_no) / n,
    }
    return {name: values.masked_fill(~both, torch.nan) for name, values in found.items()}


def _auc(scores: Float[np.ndarray, "n"], y: Float[Tensor, "n"], weights: Weights) -> Float[Tensor, "resamples"]:
    values, place = np.unique(scores, return_inverse=True)
    index = torch.from_numpy(place.reshape(-1))
    sums = weights.new_zeros(len(weights), len(values))
    yes = sums.index_add(1, index, weights * y)  # (resamples, values)
    no = sums.index_add(1, index, weights * (1 - y))
    below = no.cumsum(1) - no / 2
    return (yes * below).sum(1) / (yes.sum(1) * no.sum(1))
