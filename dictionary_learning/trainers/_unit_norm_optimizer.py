"""What a dictionary needs around any optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning.errors import ConfigError
from dictionary_learning.ops.row_updates import normalize_rows_, remove_parallel_part_
from dictionary_learning.trainers._optimizer_rows import take_rows

_TINY = 1e-6
"""Added to the norm of the gradients before it is divided by the largest norm, as in `torch.nn.utils.clip_grad_norm_`."""


class UnitNormOptimizer(torch.optim.Optimizer):
    """Gives an optimizer of PyTorch's kind what `RowAdam` has by itself.

    In this order: gradients of unit rows lose their part along the row; all gradients are scaled to a common norm of at most
    `max_grad_norm`; the inner optimizer steps; unit rows get unit norm again. A step with a gradient that is not finite changes
    nothing, and is counted in `n_skipped`.

    The inner optimizer sees float32 matrices and vectors only: in place of a weight of lower precision a copy, which is rounded
    into the weight after each step, and a weight with more axes as a matrix with the same rows. `param_groups` are the inner
    optimizer's, so a learning rate set here is used.

    Args:
        groups: groups of parameters. A group may have `unit_rows=True`, `lr_factor`, and options of the inner optimizer.
        build: makes the inner optimizer of groups.
        max_grad_norm: the largest common norm of the gradients; None for no limit.

    Raises:
        ConfigError: `max_grad_norm` is not positive, unit rows are asked of a vector, or the inner optimizer is none or has
            other parameters.
    """

    inner: torch.optim.Optimizer

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        *,
        max_grad_norm: float | None = None,
    ):
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ConfigError(f"Got max_grad_norm={max_grad_norm}; it must be positive, or None for no limit.")
        self.max_grad_norm = max_grad_norm
        super().__init__([{**group} for group in groups], {})
        self._twins = {
            p: _MasterWeight(p, group.get("unit_rows", False)) for group in self.param_groups for p in group["params"]
        }
        seen = [{**group, "params": [self._twins[p].weight for p in group["params"]]} for group in self.param_groups]
        self.inner = _checked(build(seen), [twin.weight for twin in self._twins.values()])
        self.param_groups = self.inner.param_groups
        self.n_skipped = torch.zeros((), device=next(iter(self._twins)).device)
        """How many steps were skipped because a gradient was not finite; on the device."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step with the gradients that the parameters have."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [g for twin in self._twins.values() if (g := twin.take_gradient()) is not None]
        if not gradients:
            return loss
        norm = torch.stack([torch.linalg.vector_norm(g).square() for g in gradients]).sum().sqrt()
        # an optimizer that is not ours cannot be told on the device to leave its state alone, so the host has to look
        if not norm.isfinite():
            self.n_skipped += 1
            return loss
        if self.max_grad_norm is not None:
            divisor = ((norm + _TINY) / self.max_grad_norm).clamp_min_(1.0)
            for gradient in gradients:
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
        """Removes the gradients, of the parameters and of what stands for them."""
        for p, twin in self._twins.items():
            twin.weight.grad = None
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad = torch.zeros_like(p)

    def train(self) -> None:
        """Puts the weights where gradients are taken, if the inner optimizer tells this from where they are best."""
        self._pass_on("train")

    def eval(self) -> None:
        """Puts the weights where they are best, if the inner optimizer tells this from where gradients are taken."""
        self._pass_on("eval")

    def state_dict(self) -> dict[str, Any]:
        """Returns the inner state, the float32 copies by the number of the parameter, and the count of skipped steps."""
        copies = {i: twin.weight.detach() for i, twin in enumerate(self._twins.values()) if twin.is_copy}
        return {"inner": self.inner.state_dict(), "copies": copies, "n_skipped": self.n_skipped}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a saved state, and sets the parameters that something stands for to it."""
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
        """Begins anew with rows of a parameter that were written from outside."""
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
    """A parameter, and what the inner optimizer has in its place: the parameter itself, a view or a copy."""

    def __init__(self, parameter: Tensor, unit_rows: bool):
        if unit_rows and parameter.ndim < 2:
            raise ConfigError(
                f"Got unit_rows=True for a parameter of shape {tuple(parameter.shape)}; it must have rows. Leave unit_rows out of its group."
            )
        self.parameter, self.unit_rows, self.weight = parameter, unit_rows, parameter
        if parameter.ndim > 2 or parameter.dtype in (torch.bfloat16, torch.float16):
            weight = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
            self.weight = nn.Parameter(weight.flatten(1) if weight.ndim > 2 else weight)
        self.is_copy = self.weight.data_ptr() != parameter.data_ptr()

    def take_gradient(self) -> Tensor | None:
        """Returns the gradient without what is removed from it, as the inner optimizer will find it."""
        gradient = self.parameter.grad
        if gradient is not None:
            self.read()
            gradient = gradient.reshape(self.weight.shape).to(self.weight.dtype)
            if self.unit_rows:
                remove_parallel_part_(gradient, self.weight.detach())
        self.weight.grad = gradient
        return gradient

    def read(self) -> None:
        """Takes over what was written into the parameter from outside: what differs from what stands for it, rounded."""
        if self.is_copy:
            parameter = self.parameter.detach().reshape(self.weight.shape)
            self.weight.copy_(torch.where(parameter == self.weight.to(parameter.dtype), self.weight, parameter))

    def write(self) -> None:
        """Sets the parameter to what stands for it."""
        if self.is_copy:
            self.parameter.copy_(self.weight.view(self.parameter.shape))


def _checked(inner: Any, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if not isinstance(inner, torch.optim.Optimizer):
        raise ConfigError(
            f"The optimizer's function returned a {type(inner).__name__}; a torch.optim.Optimizer is needed. "
            "Give a class as torch.optim.AdamW, or a function of groups that returns an object of one."
        )
    held = [id(p) for group in inner.param_groups for p in group["params"]]
    if sorted(held) != sorted(map(id, parameters)):
        raise ConfigError(
            f"{type(inner).__name__} holds {len(held)} parameters, which are not the {len(parameters)} it was given; it must hold those, "
            "each once. Build it of the groups that its function gets; stop a weight from learning with requires_grad=False."
        )
    return inner
