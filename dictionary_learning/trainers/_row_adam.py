"""Adam for dictionaries."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from dictionary_learning.ops._row_updates import normalize_rows_, remove_parallel_part_, row_kernels
from dictionary_learning.trainers._main_memory import MEANS, in_main_memory, is_kept, lent, slices, without_means
from dictionary_learning.trainers._optimizer_rows import (
    LOW_PRECISION,
    Closure,
    CommonNorm,
    check_numbers,
    clip_divisor,
    squared_norm,
    whole_state,
)

logger = logging.getLogger(__name__)


class RowAdam(torch.optim.Optimizer):
    """Adam with projection, clipping, skipping and unit rows, all on the device without a wait.

    A step projects the gradients of unit rows, which lose their part along the row (Bricken et al.
    2023, "Autoencoder training"); scales all gradients to a common norm of at most `max_grad_norm`;
    makes Adam's step; and normalizes unit rows. A gradient that is not finite turns the step into
    no step, counted in `n_skipped`. Weights in bfloat16 or float16 have a float32 copy in the
    state, which is rounded into them after each step.

    With `offloads`, the means of matrices are in main memory, for an accelerator that has no room
    for them. The step is the same, but the host waits for the copies.

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
        offloads: bool = False,
    ):
        check_numbers(lr, betas, eps, max_grad_norm)
        self.max_grad_norm, self.offloads = max_grad_norm, offloads
        self.norm, self._has_warned = CommonNorm(), False
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "unit_rows": False})

    __getstate__ = whole_state

    @torch.no_grad()
    def step(self, closure: Closure = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step with the current gradients; a closure computes them first."""
        loss = torch.enable_grad()(closure)() if closure else None
        moving = [
            _Moving(p, self.state[p], group, self.offloads)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not moving:
            return loss
        if self.offloads and not self._has_warned and moving[0].p.device.type == "cpu":
            logger.warning("The dictionary is on the CPU, so that an offloaded Adam saves no memory. Use adam.")
            self._has_warned = True
        norm = self.norm([(m.p, m.squared_norm()) for m in moving])
        # Adam's kernel divides gradients by the one, and does nothing where the other is 1:
        # clipping and skipping need no pass over the gradients, and no wait of the host
        divisor = clip_divisor(norm, self.max_grad_norm)
        skip = (norm - norm != 0).to(norm.dtype)  # the difference is NaN for what is not finite
        _add([m.state["n_skipped"] for m in moving], skip)  # of each parameter: a step has no state of its own
        _add([m.state["step"] for m in moving if m.kernels is not None], 1 - skip)  # else Adam does it
        for m in moving:
            m.step(divisor, skip)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from a saved state."""
        loaded = state_dict if not self.offloads else {**state_dict, "state": without_means(state_dict["state"])}
        super().load_state_dict(loaded)
        # PyTorch casts a state to the type of its parameter, but here the state is float32 always
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, values in loaded["state"].items():
            p = parameters[index]
            if p.dtype in LOW_PRECISION:
                self.state[p] = {name: value.to(p.device, copy=True) for name, value in values.items()}
            for name in MEANS if self.offloads else ():
                mean: Tensor = state_dict["state"][index][name]
                # a copy of its own: what was loaded may be the state of another optimizer
                own = in_main_memory(p, mean.dtype) if is_kept(p) else torch.empty_like(mean, device=p.device)
                self.state[p][name] = own.copy_(mean)

    @property
    def n_skipped(self) -> Tensor:
        """Number of steps that were skipped because a gradient was not finite, on the device."""
        counts = [state["n_skipped"] for state in self.state.values()]
        return torch.stack(counts).amax() if counts else torch.zeros(())


def _add(counts: list[Tensor], value: Tensor) -> None:
    """Adds to all counts with one launch."""
    if counts:
        # with a list: the host would read a single value
        torch._foreach_add_(counts, [value] * len(counts))  # pyright: ignore[reportPrivateImportUsage]


class _Moving:
    """A parameter in a step: `squared_norm` first, then `step`."""

    def __init__(self, p: Tensor, state: dict[str, Any], group: dict[str, Any], offloads: bool):
        assert p.grad is not None
        self.p, self.state, self.group, self.unit_rows = p, state, group, group["unit_rows"]
        if not state:
            weight = p.detach()
            if p.dtype in LOW_PRECISION:
                weight = state["master"] = weight.float()
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            zeros = in_main_memory if offloads and is_kept(p) else torch.zeros_like
            state["exp_avg"], state["exp_avg_sq"] = zeros(weight), zeros(weight)
            state["n_skipped"] = torch.zeros((), dtype=torch.float32, device=p.device)
        self.is_lent = offloads and is_kept(p)
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
        state = self.state
        means = state["exp_avg"], state["exp_avg_sq"]
        if not self.is_lent:
            self._move(slice(None), means, state["step"], divisor, skip)
            return
        *first, last = slices(self.weight)
        for rows in (*first, last):
            # Adam counts a step for each call: only the last one is of the parameter
            count = state["step"] if rows is last else state["step"].clone()
            for own in lent(means, rows, self.weight.device):
                self._move(rows, own, count, divisor, skip)

    def _move(self, rows: slice, means: tuple[Tensor, Tensor], step: Tensor, divisor: Tensor, skip: Tensor) -> None:
        """Updates some rows, and their means."""
        group, is_all = self.group, rows == slice(None)
        weight, gradient = (x if is_all else x[rows] for x in (self.weight, self.gradient))
        copied = self.p.detach() if "master" in self.state else None
        copied = copied if copied is None or is_all else copied[rows]
        if self.kernels is not None:
            numbers = {"step": step, "lr": group["lr"], "betas": group["betas"], "eps": group["eps"]}
            self.kernels.step_(
                *(weight, gradient, *means), **numbers, divisor=divisor, skip=skip, unit_rows=self.unit_rows,
                rounded=copied,
            )  # fmt: skip
            return
        beta1, beta2 = group["betas"]
        averages: tuple[list[Tensor], ...] = ([means[0]], [means[1]], [], [step])
        rates: dict[str, Any] = {"lr": group["lr"], "beta1": beta1, "beta2": beta2, "eps": group["eps"]}
        fused: dict[str, Any] = {"fused": True, "grad_scale": divisor, "found_inf": skip, "weight_decay": 0.0}
        adam([weight], [gradient], *averages, amsgrad=False, maximize=False, **rates, **fused)
        if self.unit_rows:
            normalize_rows_(weight)
        if copied is not None:
            copied.copy_(weight)
