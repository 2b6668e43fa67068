"""Averaging in place of a decaying learning rate.

Each weight has three points: z, which the base optimizer moves; x, the average of all z, which is
the result; and y between them, where gradients are taken. Parameters hold y in training and x in
`eval()`. z and x are stored and y is computed from them, so that `eval()` and `train()` change no
bit.
"""

from typing import Any

import torch
from torch import Tensor

from dictionary_learning.errors import ConfigError
from dictionary_learning.ops._row_updates import normalize_rows_
from dictionary_learning.trainers._optimizer_rows import Closure, closure_loss, take_rows


class ScheduleFree(torch.optim.Optimizer):
    """Averages the weights of another optimizer, and takes gradients near the average.

    z = z - base(gradient at y),  x = x + c (z - x),  y = (1 - beta) z + beta x
    c = lr_t^2 / (lr_1^2 + ... + lr_t^2), so that steps of a warm-up weigh less

    The base should have no momentum, which beta replaces. In groups with `unit_rows=True`, rows of
    z and y have unit norm, and so has x where it is read.
    Defazio et al. 2024, https://arxiv.org/abs/2405.15682.

    Args:
        base: The optimizer that moves z.
        beta: Share of the average in y.

    Raises:
        ConfigError: beta is not in [0, 1), or a step follows on `eval()`.
    """

    keeps_unit_rows = True
    """`UnitNormOptimizer` must not normalize the rows again: that would change bits."""

    def __init__(self, base: torch.optim.Optimizer, *, beta: float = 0.9):
        if not 0 <= beta < 1:
            raise ConfigError(f"Schedule-free averaging got beta={beta}; it must be in [0, 1). Use 0.9.")
        self.base, self.beta = base, beta
        super().__init__([{**group} for group in base.param_groups], {})
        self.param_groups = base.param_groups
        self.training = True
        self._points: dict[Tensor, _Points] = {}

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step with the current gradients, which were taken at y."""
        if not self.training:
            raise ConfigError(
                "Got a step after eval(), with gradients at the averaged weights, which this method cannot use. Call "
                "the optimizer's train() before the gradients are computed."
            )
        loss = closure_loss(closure)
        moving = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, group in moving:
            if p not in self._points:
                self._points[p] = _Points(p.detach().clone(), p.detach().clone(), group.get("unit_rows", False))
            p.copy_(self._points[p].z)
        self.base.step()
        for p, group in moving:
            points = self._points[p]
            points.move(p, float(group["lr"]))
            p.copy_(points.between(self.beta))
        return loss

    def train(self) -> None:
        """Sets the weights to y, where gradients are taken."""
        self._write(training=True)

    def eval(self) -> None:
        """Sets the weights to their average x."""
        self._write(training=False)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the base, the points, and whether the weights hold y."""
        points = {i: self._points[p].state_dict() for i, p in enumerate(self._parameters()) if p in self._points}
        return {"base": self.base.state_dict(), "points": points, "training": self.training}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from a saved state, and sets the weights to the point they were at."""
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups
        unit = {p: group.get("unit_rows", False) for group in self.param_groups for p in group["params"]}
        parameters = self._parameters()
        self._points = {}
        for i, values in state_dict["points"].items():
            p = parameters[int(i)]
            z, x = (values[name].to(p, copy=True) for name in ("z", "x"))
            self._points[p] = _Points(z, x, unit[p], values["weight_sum"])
        self._write(training=state_dict["training"])

    def take_rows(self, parameter: Tensor, rows: Tensor) -> None:
        """Forgets rows of a parameter that were written from outside."""
        if parameter in self._points:
            for point in (self._points[parameter].z, self._points[parameter].x):
                point[rows] = parameter.detach()[rows]
        take_rows(self.base, parameter, rows)

    @torch.no_grad()
    def _write(self, *, training: bool) -> None:
        self.training = training
        for p, points in self._points.items():
            p.copy_(points.between(self.beta if training else 1.0))

    def _parameters(self) -> list[Any]:
        return [p for group in self.param_groups for p in group["params"]]


class _Points:
    """The points z and x of one parameter."""

    def __init__(self, z: Tensor, x: Tensor, unit_rows: bool, weight_sum: float = 0.0):
        self.z, self.x, self.unit_rows, self.weight_sum = z, x, unit_rows, weight_sum

    def move(self, z: Tensor, lr: float) -> None:
        """Sets z after a step of the base with this learning rate, and moves x toward it."""
        self.z.copy_(z)
        if self.unit_rows:
            normalize_rows_(self.z.flatten(1))
        self.weight_sum += lr**2
        self.x.lerp_(self.z, lr**2 / self.weight_sum if self.weight_sum else 1.0)

    def between(self, share: float) -> Tensor:
        """Returns (1 - share) z + share x."""
        point = torch.lerp(self.z, self.x, share)
        if self.unit_rows:
            normalize_rows_(point.flatten(1))
        return point

    def state_dict(self) -> dict[str, Any]:
        return {"z": self.z, "x": self.x, "weight_sum": self.weight_sum}
