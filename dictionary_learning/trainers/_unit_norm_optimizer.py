"""Unit rows, clipping and skipping around any optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning.errors import ConfigError
from dictionary_learning.ops._row_updates import normalize_rows_, remove_parallel_part_
from dictionary_learning.trainers._optimizer_rows import (
    LOW_PRECISION,
    Closure,
    CommonNorm,
    clip_divisor,
    squared_norm,
    take_rows,
    whole_state,
)


class UnitNormOptimizer(torch.optim.Optimizer):
    """Adds what `RowAdam` does to any optimizer: projection, clipping, skipping, unit rows.

    The inner optimizer sees float32 matrices and vectors only. A weight of lower precision is
    replaced by a float32 copy, which is rounded into the weight after each step; a weight with more
    axes is replaced by a matrix with the same rows. `param_groups` are those of the inner
    optimizer, so that a learning rate set here is used there.

    Groups may have `unit_rows=True`. Raises ConfigError where a vector has, or where `build`
    returns no optimizer of the given parameters.
    """

    inner: torch.optim.Optimizer

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        *,
        max_grad_norm: float | None = None,
    ):
        self.max_grad_norm = max_grad_norm
        self.norm = CommonNorm()
        super().__init__([{**group} for group in groups], {})
        self._twins = {
            p: _MasterWeight(p, group.get("unit_rows", False)) for group in self.param_groups for p in group["params"]
        }
        inner = [{**group, "params": [self._twins[p].weight for p in group["params"]]} for group in self.param_groups]
        try:
            built = build(inner)
        except TypeError as error:
            raise ConfigError(f"Got optimizer={build!r}, which takes no parameter groups: {error}.") from error
        self.inner = _checked(built, [twin.weight for twin in self._twins.values()])
        self.param_groups = self.inner.param_groups  # one list: a rate set here is used there
        self.n_skipped = torch.zeros((), device=next(iter(self._twins)).device)
        """Number of steps that were skipped because a gradient was not finite, on the device."""

    __getstate__ = whole_state

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step with the current gradients; a closure computes them first."""
        loss = torch.enable_grad()(closure)() if closure else None
        taken = [(p, g) for p, twin in self._twins.items() if (g := twin.take_gradient()) is not None]
        if not taken:
            return loss
        norm = self.norm([(p, squared_norm(gradient)) for p, gradient in taken])
        # other optimizers cannot skip a step on the device, so the host has to wait for the norm
        if not norm.isfinite():
            self.n_skipped += 1
            return loss
        if self.max_grad_norm is not None:
            divisor = clip_divisor(norm, self.max_grad_norm)
            for _, gradient in taken:
                gradient.div_(divisor)
        self.inner.step()
        rows_are_kept = getattr(self.inner, "keeps_unit_rows", False)
        for twin in self._twins.values():
            if twin.weight.grad is not None:
                if twin.unit_rows and not rows_are_kept:
                    normalize_rows_(twin.weight)
                twin.write()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Removes the gradients of the parameters and of their float32 copies."""
        for p, twin in self._twins.items():
            twin.weight.grad = None
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad = torch.zeros_like(p)

    def train(self) -> None:
        """Sets the weights to where gradients are taken, if the inner optimizer averages them."""
        self._pass_on("train")

    def eval(self) -> None:
        """Sets the weights to their average, if the inner optimizer has one (`ScheduleFree`)."""
        self._pass_on("eval")

    def state_dict(self) -> dict[str, Any]:
        """Returns the inner state, the float32 copies by parameter index, and `n_skipped`."""
        copies = {i: twin.weight.detach() for i, twin in enumerate(self._twins.values()) if twin.is_copy}
        return {"inner": self.inner.state_dict(), "copies": copies, "n_skipped": self.n_skipped}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from a saved state, and sets the parameters to their float32 copies."""
        twins = list(self._twins.values())
        for i, values in state_dict["copies"].items():
            twins[int(i)].weight.copy_(values)
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups
        self.n_skipped.copy_(state_dict["n_skipped"])
        for twin in twins:
            twin.write()

    @torch.no_grad()
    def take_rows(self, parameter: Tensor, rows: Tensor) -> None:
        """Forgets rows of a parameter that were written from outside."""
        twin = self._twins[parameter]
        twin.read()
        take_rows(self.inner, twin.weight, rows)

    @torch.no_grad()
    def _pass_on(self, name: str) -> None:
        move = getattr(self.inner, name, None)
        if move is not None:
            move()
            for twin in self._twins.values():
                twin.write()


class _MasterWeight:
    """A parameter, and the `weight` for the inner optimizer: itself, a view or a float32 copy."""

    def __init__(self, parameter: Tensor, unit_rows: bool):
        if unit_rows and parameter.ndim < 2:
            raise ConfigError(
                f"Got unit_rows=True for a parameter of shape {tuple(parameter.shape)}; it must have rows. Leave "
                "unit_rows out of its group."
            )
        self.parameter, self.unit_rows, self.weight = parameter, unit_rows, parameter
        if parameter.ndim > 2 or parameter.dtype in LOW_PRECISION:
            weight = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
            self.weight = nn.Parameter(weight.flatten(1) if weight.ndim > 2 else weight)
        self.is_copy = self.weight.data_ptr() != parameter.data_ptr()

    def take_gradient(self) -> Tensor | None:
        """Returns the projected gradient, in the shape and dtype of `weight`."""
        gradient = self.parameter.grad
        if gradient is not None:
            self.read()
            gradient = gradient.reshape(self.weight.shape).to(self.weight.dtype)
            if self.unit_rows:
                remove_parallel_part_(gradient, self.weight.detach())
        self.weight.grad = gradient
        return gradient

    def read(self) -> None:
        """Copies entries that others wrote into the parameter: where it is not the rounded copy."""
        if self.is_copy:
            parameter = self.parameter.detach().reshape(self.weight.shape)
            self.weight.copy_(torch.where(parameter == self.weight.to(parameter.dtype), self.weight, parameter))

    def write(self) -> None:
        """Rounds the copy into the parameter."""
        if self.is_copy:
            self.parameter.copy_(self.weight.view(self.parameter.shape))


def _checked(inner: Any, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if not isinstance(inner, torch.optim.Optimizer):
        raise ConfigError(
            f"The optimizer's function returned a {type(inner).__name__}; a torch.optim.Optimizer is needed. "
            "Give a class, such as torch.optim.AdamW, or a function from groups to an optimizer."
        )
    held = [id(p) for group in inner.param_groups for p in group["params"]]
    if sorted(held) != sorted(map(id, parameters)):
        raise ConfigError(
            f"{type(inner).__name__} holds {len(held)} parameters, which are not the {len(parameters)} that it got. "
            "Build it from the groups that its function gets; freeze a weight with requires_grad=False."
        )
    return inner
