"""Components: the parts of a trainer that have state of their own."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from dictionary_learning.parallel import ALONE, Ranks
from dictionary_learning.trainers._batch import StepPart

C = TypeVar("C", bound="Component")
Number = TypeVar("Number", int, float)


class Component(ABC):
    """A part of a trainer with state of its own, such as an annealed k, or the dead latents."""

    ranks: Ranks = ALONE
    """The processes that share a step's tokens, of which `after_step` gets those of this one."""
    latent_ranks: Ranks = ALONE
    """The processes that have the other latents of the dictionary."""

    @abstractmethod
    def after_step(self, parts: Sequence[StepPart], step: int) -> None:
        """Updates the state after the optimizer step with this number, counted from 0."""

    def go_to(self, step: int) -> None:  # noqa: B027
        """Makes what depends on the step that of another one, as older scripts ask for."""

    def read_by_loss(self) -> Sequence[Any] | None:
        """Returns all that the loss reads of it: tensors, and numbers of the host; None if unknown.

        While they are the same tensors and numbers, a recorded step stands for the next one.
        """
        return None

    @abstractmethod
    def figures(self) -> Mapping[str, Tensor]:
        """Returns values for the log, on the device."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns everything the next steps depend on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a saved state."""


class component(functools.cached_property[C]):
    """Marks a method of a trainer that returns a `Component`, which is made once, and is its value.

    Components are updated, logged, saved and resumed in the order of their definition.
    """


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

    def go_to(self, step: int) -> None:
        self._step = step

    def read_by_loss(self) -> list[Number]:
        return [self.now]

    def figures(self) -> dict[str, Tensor]:
        # of the step that was made, as the loss beside it
        return {self._figure: torch.tensor(self._at(max(self._step - 1, 0)))}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]


def made_components(trainer: object) -> dict[str, Component]:
    """Returns the components that a trainer's classes mark, made anew, by name.

    Those of a base come before those of a method, which see what these have changed.
    """
    classes = reversed(type(trainer).__mro__)
    names = [name for c in classes for name, value in vars(c).items() if type(value) is component]
    for name in names:
        vars(trainer).pop(name, None)  # made before
    return {name: getattr(trainer, name) for name in names}
