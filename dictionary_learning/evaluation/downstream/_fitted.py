"""Probes of activations, and how often they are right on test texts, over resamples of these."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.evaluation.downstream._coded import Coded, strongest
from dictionary_learning.evaluation.downstream._logistic import LinearProbe, fit_probe
from dictionary_learning.evaluation.downstream._splitting import Problem, Split


class FittedProbes:
    """A probe for each problem, fitted once for all views of a site, which share its activations.

    Args:
        x: the activations of all texts.
        problems: what is told.
        split: the texts.
        strengths: values of C.
        weights: how often each resample has each test text.
    """

    def __init__(
        self,
        x: Float[np.ndarray, "texts dim"],
        problems: Sequence[Problem],
        split: Split,
        strengths: Sequence[float],
        weights: Float[Tensor, "resamples n_test"],
    ):
        self.problems, self.split, self.weights = problems, split, weights
        self.probes = [fit_probe(x[one.train], one.truth[one.train], strengths) for one in problems]
        self.clean = self.accuracies(x)

    def accuracies(self, x: Float[np.ndarray, "texts dim"]) -> Float[Tensor, "problems resamples"]:
        """Returns the accuracy of each probe on its problem."""
        each = zip(self.probes, self.problems, strict=True)
        return torch.stack([self.accuracy(probe, x, one) for probe, one in each])

    def accuracy(
        self, probe: LinearProbe, x: Float[np.ndarray, "texts dim"], problem: Problem
    ) -> Float[Tensor, "resamples"]:
        """Returns the accuracy of any probe on a problem."""
        right = (probe.scores(x[problem.test]) > 0) == problem.truth[problem.test]
        own = self.weights[:, torch.from_numpy(problem.test) - self.split.n_train]
        return own @ torch.from_numpy(right.astype(np.float64)) / own.sum(1)

    def lost_by(
        self, view: Coded, values: Float[np.ndarray, "dict_size"], n: int
    ) -> Float[Tensor, "problems resamples"]:
        """Returns the accuracy that each probe loses with the n latents of the largest values."""
        return self.clean - self.accuracies(view.without(strongest(values, n)))
