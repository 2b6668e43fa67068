"""Optimizers by name or from a user, with projection, clipping, skipping and unit rows."""

import functools
import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning.config import Registry
from dictionary_learning.errors import ConfigError, MissingDependencyError
from dictionary_learning.trainers._optimizer_rows import check_numbers, take_rows, whole_state
from dictionary_learning.trainers._row_adam import RowAdam
from dictionary_learning.trainers._schedule_free import ScheduleFree
from dictionary_learning.trainers._unit_norm_optimizer import UnitNormOptimizer

Groups = list[dict[str, Any]]
ProjectingOptimizer = RowAdam | UnitNormOptimizer

OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry("optimizer")
"""Functions `(groups, *, betas, eps)` to an optimizer. Each group has a learning rate."""

OPTIMIZERS.register("adam")(RowAdam)


@OPTIMIZERS.register("adam_offloaded")
def adam_offloaded(groups: Groups, *, betas: tuple[float, float], eps: float, **options: Any) -> RowAdam:
    """Returns Adam whose means are in main memory, where the dictionary is on an accelerator.

    They are copied to the device and back in each step. On a CPU that saves nothing.
    """
    return RowAdam(groups, betas=betas, eps=eps, offloads=True, **options)


_SIGN_BETA = 0.95
"""Beta of schedule-free Signum: the size of the momentum that it replaces."""


def build_optimizer(
    optimizer: str | Callable[..., Any],
    groups: Iterable[dict[str, Any]],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    max_grad_norm: float | None = None,
) -> ProjectingOptimizer:
    """Returns an optimizer of groups, with projection, clipping, skipping and unit rows.

    Args:
        optimizer: A name of `OPTIMIZERS`; or a function from groups to an optimizer, such as the
            class `torch.optim.AdamW` or a `functools.partial` of one, which gets no betas and no
            eps.
        groups: Groups of parameters, with `unit_rows`, `lr_factor` and options of the optimizer.
        lr: Learning rate of groups that have none.
        betas: Decays of the mean gradient and of the mean squared gradient.
        eps: Added to the root of the mean squared gradient.
        max_grad_norm: Largest common norm of the gradients; None for no limit.

    Raises:
        ConfigError: A number is out of range, or the optimizer is unknown here or to this PyTorch.
        MissingDependencyError: The optimizer is in a package that is not installed.
    """
    check_numbers(lr, betas, eps, max_grad_norm)
    groups = [{"lr": lr, **group} for group in groups]
    build = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    if build is RowAdam:
        return RowAdam(groups, lr, betas, eps, max_grad_norm=max_grad_norm)
    if build is adam_offloaded:
        return adam_offloaded(groups, betas=betas, eps=eps, max_grad_norm=max_grad_norm)
    if isinstance(optimizer, str):
        build = functools.partial(build, betas=betas, eps=eps)
    return UnitNormOptimizer(groups, build, max_grad_norm=max_grad_norm)


def parameter_groups(module: nn.Module, lr_factors: Mapping[str, float], unit_rows: Collection[str]) -> Groups:
    """Returns a group for each parameter of a module.

    Args:
        module: Whose parameters.
        lr_factors: Factors of the learning rate, by the last part of a parameter's name.
        unit_rows: Names of the parameters whose rows are kept at unit norm.
    """
    return [
        {"params": [p], "lr_factor": lr_factors.get(name.rpartition(".")[2], 1.0), "unit_rows": name in unit_rows}
        for name, p in module.named_parameters()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of all groups, times the factor of each."""
    for group in optimizer.param_groups:
        rate = lr * group.get("lr_factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)  # a captured CUDA graph reads it there
        else:
            group["lr"] = rate


@OPTIMIZERS.register("adam_8bit")
def adam_8bit(groups: Groups, *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns Adam with means in 8 bits, from bitsandbytes.

    Dettmers et al. 2021, https://arxiv.org/abs/2110.02861.
    """
    try:
        bitsandbytes: Any = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise MissingDependencyError("bitsandbytes", "The optimizer 'adam_8bit'") from error
    return bitsandbytes.optim.Adam8bit(groups, betas=betas, eps=eps)


@OPTIMIZERS.register("signum")
def signum(groups: Groups, *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns `Signum` with its own momentum."""
    return Signum(groups)


@OPTIMIZERS.register("signum_schedule_free")
def signum_schedule_free(groups: Groups, *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns Signum, with averaged weights in place of momentum and of a decaying rate."""
    return ScheduleFree(Signum(groups, momentum=0.0), beta=_SIGN_BETA)


@OPTIMIZERS.register("adam_schedule_free")
def adam_schedule_free(groups: Groups, *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns Adam, with averaged weights in place of momentum and of a decaying rate."""
    return ScheduleFree(torch.optim.Adam(groups, betas=(0.0, betas[1]), eps=eps), beta=betas[0])


@OPTIMIZERS.register("muon")
def muon(groups: Groups, *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns Muon for matrices, with steps as large as Adam's, and Adam for the other parameters.

    Without weight decay. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon;
    Liu et al. 2025, https://arxiv.org/abs/2502.16982, section 2.2.
    """
    build = getattr(torch.optim, "Muon", None)
    if build is None:
        raise ConfigError(
            f"The optimizer 'muon' is not in PyTorch {torch.__version__}; 2.9 or later is needed. Upgrade with: "
            "pip install 'torch>=2.9'"
        )
    optimizers: list[torch.optim.Optimizer] = []
    if matrices := _groups_where(groups, is_matrix=True):
        optimizers.append(build(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    if others := _groups_where(groups, is_matrix=False):
        optimizers.append(torch.optim.Adam(others, betas=betas, eps=eps))
    return MultiOptimizer(optimizers)


def _groups_where(groups: Groups, *, is_matrix: bool) -> Groups:
    chosen = [{**group, "params": [p for p in group["params"] if (p.ndim == 2) is is_matrix]} for group in groups]
    return [group for group in chosen if group["params"]]


class Signum(torch.optim.Optimizer):
    """Moves every weight by the learning rate, against the sign of the mean gradient.

    m = momentum * m + (1 - momentum) * g,  p = p - lr * sign(m)

    With momentum, a weight moves on after its gradient has become 0: latents that do not fire move.
    Bernstein et al. 2018, https://arxiv.org/abs/1802.04434.

    With momentum 0 it takes the sign of the gradient itself, and has no state. Raises ConfigError
    where a number is out of range.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, *, momentum: float = 0.95):
        if not (lr >= 0 and 0 <= momentum < 1):
            raise ConfigError(
                f"Signum got lr={lr} and momentum={momentum}; lr of at least 0 and momentum in [0, 1) are needed. "
                "Use momentum=0.95."
            )
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step with the current gradients."""
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


class MultiOptimizer(torch.optim.Optimizer):
    """Makes the steps of several optimizers, each of its own parameters and with its own state.

    `param_groups` are the groups of all, concatenated.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]):
        self.optimizers = list(optimizers)
        super().__init__([{**group} for optimizer in self.optimizers for group in optimizer.param_groups], {})
        self._link()

    __getstate__ = whole_state

    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Makes one step with the current gradients."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of each."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resumes from a saved state."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._link()

    def take_rows(self, parameter: Tensor, rows: Tensor) -> None:
        """Forgets rows of a parameter that were written from outside."""
        for optimizer in self.optimizers:
            take_rows(optimizer, parameter, rows)

    def _link(self) -> None:
        # loading gives an optimizer new groups; a learning rate set here must reach those
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
