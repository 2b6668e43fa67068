"""Figures of a step, which every method has."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dictionary_learning.latents import l0
from dictionary_learning.parallel import Ranks
from dictionary_learning.trainers._batch import StepPart


def step_figures(parts: Sequence[StepPart], ranks: Ranks, latent_ranks: Ranks) -> dict[str, Tensor]:
    """Returns loss, its terms, l0 and fvu of the parts of a step, on the device.

    fvu = sum |y_hat - y|^2 / sum |y - mean y|^2 over the tokens of the step; lower is better.

    Args:
        parts: Those of this process.
        ranks: The processes that have other tokens.
        latent_ranks: The processes that have other latents.
    """
    figures: dict[str, Tensor] = {}
    for _, loss, share in parts:
        values = {"loss": loss.total, **loss.terms, "l0": latent_ranks.sum(l0(loss.reconstruction.latents))}
        for name, value in values.items():
            figures[name] = figures.get(name, torch.zeros(())) + share * value.detach()
    figures = {name: ranks.sum(value) for name, value in figures.items()}
    y = torch.cat([part.batch.y for part in parts]).float()
    outputs = torch.cat([part.loss.reconstruction.outputs for part in parts]).float()
    center = ranks.mean(y.mean(0), len(y))
    error, variance = (outputs - y).pow(2).sum(), (y - center).pow(2).sum()
    return {**figures, "fvu": ranks.sum(error) / ranks.sum(variance)}
