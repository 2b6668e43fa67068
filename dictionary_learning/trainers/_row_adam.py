"""Adam for dictionaries."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from dictionary_learning.errors import ConfigError
from dictionary_learning.ops.row_updates import normalize_rows_, remove_parallel_part_, row_kernels

_LOW = (torch.bfloat16, torch.float16)
_TINY = 1e-6
"""Added to the norm of the gradients before the largest norm is divided by it, as in `torch.nn.utils.clip_grad_norm_`."""


class RowAdam(torch.optim.Optimizer):
    """Adam with what a dictionary needs around it, on the device and without waiting for it.

    In this order: gradients of unit rows lose their part along the row, which would only change the norm (Bricken et al. 2023,
    "Autoencoder training"); all gradients are scaled to a common norm of at most `max_grad_norm`; Adam steps; unit rows get
    unit norm again. A step with a gradient that is not finite changes nothing, and is counted in `n_skipped`. Weights stored in
    bfloat16 or float16 are kept in float32 beside, in the state, and rounded after each step.

    Args:
        params: parameters, or groups of them. A group may have `unit_rows=True`, `lr`, `betas` and `eps` of its own.
        lr: learning rate.
        betas: decays of the mean gradient and of the mean squared gradient.
        eps: added to the root of the mean squared gradient.
        max_grad_norm: the largest common norm of the gradients; None for no limit.
        unit_rows: whether rows of the weights have unit norm.

    Raises:
        ConfigError: a number that cannot be used.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        max_grad_norm: float | None = None,
        unit_rows: bool = False,
    ):
        if not (lr >= 0 and eps >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise ConfigError(
                f"Adam got lr={lr}, betas={betas}, eps={eps}; lr and eps must not be negative, and betas in [0, 1)."
            )
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ConfigError(f"Got max_grad_norm={max_grad_norm}; it must be positive, or None for no limit.")
        self.max_grad_norm = max_grad_norm
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "unit_rows": unit_rows})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step with the gradients that the parameters have."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [
            _Moving(p, self.state[p], group)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not moving:
            return loss
        norm = torch.stack([m.begin() for m in moving]).sum().sqrt()
        # Adam divides gradients by the one and leaves everything alone where the other is 1: no pass of its own, no look
        divisor = ((norm + _TINY) / self.max_grad_norm).clamp_min_(1.0) if self.max_grad_norm else torch.ones_like(norm)
        skip = (~norm.isfinite()).to(norm.dtype)
        for m in moving:
            m.step(divisor, skip)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a saved state."""
        super().load_state_dict(state_dict)
        # PyTorch casts a state to its parameter's type; that of a low-precision parameter is float32 all the same
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, values in state_dict["state"].items():
            p = parameters[index]
            if p.dtype in _LOW:
                self.state[p] = {name: value.to(p.device, copy=True) for name, value in values.items()}

    @property
    def n_skipped(self) -> Tensor:
        """How many steps were skipped because a gradient was not finite; on the device."""
        counts = [state["n_skipped"] for state in self.state.values()]
        return torch.stack(counts).amax() if counts else torch.zeros(())


class _Moving:
    """A parameter in a step: its gradient's norm first, then the update."""

    def __init__(self, p: Tensor, state: dict[str, Any], group: dict[str, Any]):
        assert p.grad is not None
        self.p, self.state, self.group, self.unit_rows = p, state, group, group["unit_rows"]
        if not state:
            weight = p.detach()
            if p.dtype in _LOW:
                weight = state["master"] = weight.float()
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
            state["n_skipped"] = torch.zeros((), dtype=torch.float32, device=p.device)
        self.weight = state.get("master", p.detach())
        self.gradient = p.grad
        self.kernels = row_kernels(self.weight, self.unit_rows)

    def begin(self) -> Tensor:
        """Returns the squared norm of the gradient without what is removed from it."""
        if self.kernels is not None:
            return self.kernels.squared_norm(self.gradient, self.weight, self.unit_rows)
        if self.p.dtype in _LOW:
            self.gradient = self.gradient.float()
        if self.unit_rows:
            remove_parallel_part_(self.gradient, self.weight)
        return torch.linalg.vector_norm(self.gradient).square()

    def step(self, divisor: Tensor, skip: Tensor) -> None:
        """Moves the parameter."""
        state, group = self.state, self.group
        state["n_skipped"] += skip
        if self.kernels is not None:
            state["step"] += 1 - skip
            lr = group["lr"] if isinstance(group["lr"], Tensor) else torch.full_like(divisor, group["lr"])
            self.kernels.step_(
                self.weight,
                self.gradient,
                state["exp_avg"],
                state["exp_avg_sq"],
                step=state["step"],
                lr=lr,
                betas=group["betas"],
                eps=group["eps"],
                divisor=divisor,
                skip=skip,
                unit_rows=self.unit_rows,
                rounded=self.p.detach() if "master" in state else None,
            )
            return
        adam(
            [self.weight],
            [self.gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            grad_scale=divisor,
            found_inf=skip,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        if self.unit_rows:
            normalize_rows_(self.weight)
        if "master" in state:
            self.p.detach().copy_(self.weight)
