"""Adam for dictionaries."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from dictionary_learning.errors import ConfigError
from dictionary_learning.ops.row_updates import normalize_rows_, remove_parallel_part_

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
        moving = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        if not any(parameters for _, parameters in moving):
            return loss
        gradients = {p: self._gradient(p, group["unit_rows"]) for group, parameters in moving for p in parameters}
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()]))
        # Adam divides gradients by the one and leaves everything alone where the other is 1: no pass of its own, no look
        divisor = ((norm + _TINY) / self.max_grad_norm).clamp_min_(1.0) if self.max_grad_norm else torch.ones_like(norm)
        skip = (~norm.isfinite()).to(norm.dtype)
        for group, parameters in moving:
            if parameters:
                self._update(group, parameters, gradients, divisor, skip)
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

    def _gradient(self, p: Tensor, unit_rows: bool) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            self._begin(p)
        gradient = p.grad.float() if p.dtype in _LOW else p.grad
        if unit_rows:
            remove_parallel_part_(gradient, state.get("master", p.detach()))
        return gradient

    def _begin(self, p: Tensor) -> None:
        state, weight = self.state[p], p.detach()
        if p.dtype in _LOW:
            weight = state["master"] = weight.float()
        state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["n_skipped"] = torch.zeros((), dtype=torch.float32, device=p.device)

    def _update(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        gradients: dict[Tensor, Tensor],
        divisor: Tensor,
        skip: Tensor,
    ) -> None:
        states = [self.state[p] for p in parameters]
        weights = [state.get("master", p.detach()) for p, state in zip(parameters, states, strict=True)]
        beta1, beta2 = group["betas"]
        adam(
            weights,
            [gradients[p] for p in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            grad_scale=divisor,
            found_inf=skip,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        for p, state, weight in zip(parameters, states, weights, strict=True):
            state["n_skipped"] += skip
            if group["unit_rows"]:
                normalize_rows_(weight)
            if weight.data_ptr() != p.data_ptr():
                p.copy_(weight)
