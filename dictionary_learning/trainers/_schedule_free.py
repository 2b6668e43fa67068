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
from dictionary_learning.trainers._optimizer_rows import take_rows, whole_state


class ScheduleFree(torch.optim.Optimizer):
    """Averages the weights of another optimizer, and takes gradients near the average.

    z = z - base(gradient at y),  x = x + c (z - x),  y = (1 - beta) z + beta x
    c = lr_t^2 / (lr_1^2 + ... + lr_t^2), so that steps of a warm-up weigh less

    The base should have no momentum, which beta, the share of the average in y, replaces. In groups
    with `unit_rows=True`, rows of z and y have unit norm, and so has x where it is read. Raises
    ConfigError where beta is not in [0, 1), or a step follows on `eval()`.
    Defazio et al. 2024, https://arxiv.org/abs/2405.15682.
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
        # by the index of the parameter: z, x and the sum of lr^2
        self._points: dict[int, dict[str, Any]] = {}

    __getstate__ = whole_state

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step with the current gradients, which were taken at y."""
        if not self.training:
            raise ConfigError(
                "Got a step after eval(), with gradients at the averaged weights, which this method cannot use. Call "
                "the optimizer's train() before the gradients are computed."
            )
        moving = [(i, p, group) for i, p, group in self._parameters() if p.grad is not None]
        for i, p, _ in moving:
            if i not in self._points:
                self._points[i] = {"z": p.detach().clone(), "x": p.detach().clone(), "weight_sum": 0.0}
            p.copy_(self._points[i]["z"])  # what the base moves
        self.base.step()
        for i, p, group in moving:
            points, weight = self._points[i], float(group["lr"]) ** 2
            points["z"].copy_(p)
            if group.get("unit_rows", False):
                normalize_rows_(points["z"].flatten(1))
            # a rate of 0, as in the first step of some warm-ups, has no weight, but needs an
            # average
            points["weight_sum"] += weight
            points["x"].lerp_(points["z"], weight / points["weight_sum"] if points["weight_sum"] else 1.0)
        self._write(training=True)

    def train(self) -> None:
        """Sets the weights to y, where gradients are taken."""
        self._write(training=True)

    def eval(self) -> None:
        """Sets the weights to their average x."""
        self._write(training=False)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the base, the points, and whether the weights hold y."""
        points = {i: dict(points) for i, points in self._points.items()}
        return {"base": self.base.state_dict(), "points": points, "training": self.training}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from a saved state, and sets the weights to the point they were at."""
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups
        parameters = {i: p for i, p, _ in self._parameters()}
        self._points = {
            int(i): {**points, **{name: points[name].to(parameters[int(i)], copy=True) for name in ("z", "x")}}
            for i, points in state_dict["points"].items()
        }
        self._write(training=state_dict["training"])

    def take_rows(self, parameter: Tensor, rows: Tensor) -> None:
        """Forgets rows of a parameter that were written from outside."""
        for i, p, _ in self._parameters():
            if p is parameter and i in self._points:
                for name in ("z", "x"):
                    self._points[i][name][rows] = parameter.detach()[rows]
        take_rows(self.base, parameter, rows)

    @torch.no_grad()
    def _write(self, *, training: bool) -> None:
        """Sets each weight to (1 - beta) z + beta x, or to x."""
        self.training = training
        for i, p, group in self._parameters():
            if i in self._points:
                point = torch.lerp(self._points[i]["z"], self._points[i]["x"], self.beta if training else 1.0)
                if group.get("unit_rows", False):
                    normalize_rows_(point.flatten(1))
                p.copy_(point)

    def _parameters(self) -> list[tuple[int, Tensor, dict[str, Any]]]:
        pairs = [(p, group) for group in self.param_groups for p in group["params"]]
        return [(i, p, group) for i, (p, group) in enumerate(pairs)]
