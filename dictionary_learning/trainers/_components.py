"""Parts of a trainer with state of their own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from dictionary_learning.trainers._batch import StepPart

Number = TypeVar("Number", int, float)


class Component:
    """A part of a trainer with state of its own, such as a threshold, or the dead latents."""

    def after_step(self, parts: Sequence[StepPart], step: int) -> None:
        """Updates the state after the optimizer step with this number, counted from 0."""

    def figures(self) -> Mapping[str, Tensor]:
        """Returns values for the log, on the device."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Returns everything the next steps depend on."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a saved state."""


class ScheduledValue(Component, Generic[Number]):
    """A number that depends on the step only, such as k while it is annealed.

    Args:
        figure: Its name in the log.
        at: Returns the value at a step.
    """

    def __init__(self, figure: str, at: Callable[[int], Number]):
        self._figure, self._at, self._step = figure, at, 0

    @property
    def now(self) -> Number:
        """The value at the current step."""
        return self._at(self._step)

    def after_step(self, parts: Sequence[StepPart], step: int) -> None:
        self._step = step + 1

    def figures(self) -> dict[str, Tensor]:
        return {self._figure: torch.tensor(self.now)}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
