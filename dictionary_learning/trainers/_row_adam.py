"""Adam for dictionaries."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from dictionary_learning.ops._row_updates import normalize_rows_, remove_parallel_part_, row_kernels
from dictionary_learning.parallel import Ranks
from dictionary_learning.trainers._optimizer_rows import (
    LOW_PRECISION,
    Closure,
    CommonNorm,
    check_numbers,
    clip_divisor,
    squared_norm,
)


class RowAdam(torch.optim.Optimizer):
    """Adam with projection, clipping, skipping and unit rows, all on the device without a wait.

    A step projects the gradients of unit rows, which lose their part along the row (Bricken et al.
    2023, "Autoencoder training"); scales all gradients to a common norm of at most `max_grad_norm`;
    makes Adam's step; and normalizes unit rows. A gradient that is not finite turns the step into
    no step, counted in `n_skipped`. Weights in bfloat16 or float16 have a float32 copy in the
    state, which is rounded into them after each step.

    Groups may have `unit_rows=True`, `lr`, `betas` and `eps` of their own. Raises ConfigError where
    a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        max_grad_norm: float | None = None,
    ):
        check_numbers(lr, betas, eps, max_grad_norm)
        self.max_grad_norm = max_grad_norm
        self.norm = CommonNorm()
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "unit_rows": False})

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step with the current gradients; a closure computes them first."""
        loss = torch.enable_grad()(closure)() if closure else None
        moving = [
            _Moving(p, self.state[p], group)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not moving:
            return loss
        norm = self.norm([(m.p, m.squared_norm()) for m in moving])
        # Adam's kernel divides gradients by the one, and does nothing where the other is 1:
        # clipping and skipping need no pass over the gradients, and no wait of the host
        divisor = clip_divisor(norm, self.max_grad_norm)
        skip = (~norm.isfinite()).to(norm.dtype)
        for m in moving:
            m.step(divisor, skip)
        return loss

    def share_norm(self, ranks: Ranks, parameters: Iterable[Tensor]) -> None:
        """Makes gradients of all ranks have one norm; these parameters are parts of larger ones."""
        self.norm = CommonNorm(ranks, parameters)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from a saved state."""
        super().load_state_dict(state_dict)
        # PyTorch casts a state to the type of its parameter, but here the state is float32 always
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, values in state_dict["state"].items():
            p = parameters[index]
            if p.dtype in LOW_PRECISION:
                self.state[p] = {name: value.to(p.device, copy=True) for name, value in values.items()}

    @property
    def n_skipped(self) -> Tensor:
        """Number of steps that were skipped because a gradient was not finite, on the device."""
        counts = [state["n_skipped"] for state in self.state.values()]
        return torch.stack(counts).amax() if counts else torch.zeros(())


class _Moving:
    """A parameter in a step: `squared_norm` first, then `step`."""

    def __init__(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]):
        assert p.grad is not None
        self.p, self.state, self.group, self.unit_rows = p, state, group, group["unit_rows"]
        if not state:
            weight = p.detach()
            if p.dtype in LOW_PRECISION:
                weight = state["master"] = weight.float()
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
            state["n_skipped"] = torch.zeros((), dtype=torch.float32, device=p.device)
        self.weight = state.get("master", p.detach())
        self.gradient = p.grad
        self.kernels = row_kernels(self.weight, self.unit_rows)

    def squared_norm(self) -> Tensor:
        """Projects the gradient, and returns its squared norm."""
        if self.kernels is not None:
            return self.kernels.squared_norm(self.gradient, self.weight, self.unit_rows)
        if self.p.dtype in LOW_PRECISION:
            self.gradient = self.gradient.float()
        if self.unit_rows:
            remove_parallel_part_(self.gradient, self.weight)
        return squared_norm(self.gradient)

    def step(self, divisor: Tensor, skip: Tensor) -> None:
        """Updates the parameter and the state in place."""
        state, group = self.state, self.group
        state["n_skipped"] += skip  # of the parameter: a step has no state of its own
        if self.kernels is not None:
            state["step"] += 1 - skip
            lr = group["lr"] if isinstance(group["lr"], Tensor) else torch.full_like(divisor, group["lr"])
            tensors = (self.weight, self.gradient, state["exp_avg"], state["exp_avg_sq"])
            numbers = {"step": state["step"], "lr": lr, "betas": group["betas"], "eps": group["eps"]}
            rounded = self.p.detach() if "master" in state else None
            self.kernels.step_(
                *tensors, **numbers, divisor=divisor, skip=skip, unit_rows=self.unit_rows, rounded=rounded
            )
            return
        beta1, beta2 = group["betas"]
        averages: tuple[list[Tensor], ...] = ([state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]])
        rates: dict[str, Any] = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "eps": group["eps"]}
        fused: dict[str, Any] = {"fused": True, "grad_scale": divisor, "found_inf": skip, "weight_decay": 0.0}
        adam([self.weight], [self.gradient], *averages, amsgrad=False, maximize=False, **rates, **fused)
        if self.unit_rows:
            normalize_rows_(self.weight)
        if "master" in state:
            self.p.detach().copy_(self.weight)
