"""A guard against steps whose loss is far above the usual one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.trainers._batch import StepPart
from dictionary_learning.trainers._components import Component

_DECAY = 0.98
_FIRST = 20
"""Steps from which on the average is trusted."""


class LossGuard(Component):
    """Turns a step whose loss is above a multiple of its moving average into no step.

    The loss of such a step is made NaN, as that of a gradient that is not finite, which every
    optimizer skips: without a wait for the device. The average takes no more than the multiple from
    one step, so that it follows where the loss stays high.
    """

    def __init__(self, ratio: float, device: torch.device):
        self.ratio = ratio
        self.mean = torch.zeros((), device=device)
        self._n = 0

    def factor(self, loss: Tensor) -> Tensor:
        """Returns 1 for a usual loss, else NaN."""
        is_spike = (loss.detach() > self.ratio * self.mean) & (self._n >= _FIRST)
        return torch.where(is_spike, torch.nan, 1.0)

    def after_step(self, parts: Sequence[StepPart], step: int) -> None:
        loss = self.ranks.sum(torch.stack([part.loss.total.float() * part.share for part in parts]).sum())
        loss = torch.where(loss.isfinite(), loss, self.mean)
        if self._n >= _FIRST:
            loss = loss.minimum(self.ratio * self.mean)
        self.mean.lerp_(loss, max(1 - _DECAY, 1 / (self._n + 1)))
        self._n += 1

    def read_by_loss(self) -> list[Any]:
        return [self.mean, self._n >= _FIRST]

    def figures(self) -> Mapping[str, Tensor]:
        return {"usual_loss": self.mean}

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "n": self._n}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean.copy_(state["mean"])
        self._n = state["n"]
