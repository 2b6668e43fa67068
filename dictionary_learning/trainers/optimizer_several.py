"""Several optimizers as one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.trainers.optimizer_rows import take_rows


class MultiOptimizer(torch.optim.Optimizer):
    """Makes the steps of several optimizers, each of its own parameters.

    `param_groups` are the groups of all, one after another; the state stays with each.

    Args:
        optimizers: at least one; no parameter is in two of them.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]):
        self.optimizers = list(optimizers)
        super().__init__([{**group} for optimizer in self.optimizers for group in optimizer.param_groups], {})
        self._link()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step with the gradients that the parameters have."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of all."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a saved state."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._link()

    def take_rows(self, parameter: Tensor, rows: Tensor) -> None:
        """Begins anew with rows of a parameter that were written from outside."""
        for optimizer in self.optimizers:
            take_rows(optimizer, parameter, rows)

    def _link(self) -> None:
        # loading gives an optimizer new groups; a learning rate set here must reach the ones that are used
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
