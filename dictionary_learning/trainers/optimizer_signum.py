"""The sign of the momentum."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from dictionary_learning.errors import ConfigError


class Signum(torch.optim.Optimizer):
    """Moves every weight by the learning rate, against the sign of the mean gradient.

    m = momentum * m + (1 - momentum) * g,  p = p - lr * sign(m)

    A weight whose gradient is exactly 0 goes on while its mean lasts: with momentum, latents that do not fire move.
    Bernstein et al. 2018, https://arxiv.org/abs/1802.04434

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum: decay of the mean gradient; 0 for the sign of the gradient itself, with no state.

    Raises:
        ConfigError: a number that cannot be used.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, *, momentum: float = 0.95):
        if not (lr >= 0 and 0 <= momentum < 1):
            raise ConfigError(
                f"Signum got lr={lr} and momentum={momentum}; lr must not be negative, and momentum in [0, 1). Use momentum=0.95."
            )
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step with the gradients that the parameters have."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                mean = p.grad
                if group["momentum"]:
                    state = self.state[p]
                    if not state:
                        state["exp_avg"] = torch.zeros_like(p)
                    mean = state["exp_avg"].lerp_(p.grad, 1 - group["momentum"])
                p.sub_(mean.sign().mul_(group["lr"]))
        return loss
