"""Optimizers by name, and whatever else PyTorch or a user has, with what a dictionary needs around them."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch

from dictionary_learning.config import Registry
from dictionary_learning.errors import ConfigError, MissingDependencyError
from dictionary_learning.trainers.optimizer_constrained import UnitNormOptimizer
from dictionary_learning.trainers.optimizer_schedule_free import ScheduleFree
from dictionary_learning.trainers.optimizer_several import MultiOptimizer
from dictionary_learning.trainers.optimizer_signum import Signum
from dictionary_learning.trainers.row_adam import RowAdam

Groups = list[dict[str, Any]]

OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry("optimizer")
"""Builders `(groups, *, betas, eps)`, whose groups each have a learning rate. What has no use for betas or eps leaves them."""

OPTIMIZERS.register("adam")(RowAdam)

_SIGN_BETA = 0.95
"""What stands for momentum where signs are averaged, in place of Signum's own of the same size."""


def build_optimizer(
    optimizer: str | Callable[..., Any],
    groups: Iterable[dict[str, Any]],
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    max_grad_norm: float | None = None,
) -> torch.optim.Optimizer:
    """Returns an optimizer of groups of parameters, with projection, clipping, skipping and unit rows.

    Args:
        optimizer: a name of `OPTIMIZERS`; or what makes an optimizer of groups: a class as `torch.optim.AdamW`, a
            `functools.partial` of one, a function. It gets no betas and no eps but those it has itself.
        groups: groups of parameters. A group may have `unit_rows=True`, `lr_factor`, and options of the optimizer.
        lr: learning rate of groups that have none.
        betas: decays of the mean gradient and of the mean squared gradient.
        eps: added to the root of the mean squared gradient.
        max_grad_norm: the largest common norm of the gradients; None for no limit.

    Raises:
        ConfigError: a number cannot be used, the name is not known, or this version of PyTorch has no such optimizer.
        MissingDependencyError: the optimizer is in a package that is not installed.
    """
    if not (lr >= 0 and eps >= 0 and all(0 <= beta < 1 for beta in betas)):
        raise ConfigError(
            f"The optimizer got lr={lr}, betas={betas}, eps={eps}; lr and eps must not be negative, and betas in [0, 1)."
        )
    groups = [{"lr": lr, **group} for group in groups]
    build = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    if build is RowAdam:
        return RowAdam(groups, lr, betas, eps, max_grad_norm=max_grad_norm)
    if isinstance(optimizer, str):
        build = functools.partial(build, betas=betas, eps=eps)
    return UnitNormOptimizer(groups, build, max_grad_norm=max_grad_norm)


@OPTIMIZERS.register("adam_8bit")
def adam_8bit(groups: Groups, *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns Adam with its means in 8 bits, from bitsandbytes.

    Dettmers et al. 2021, https://arxiv.org/abs/2110.02861

    Raises:
        MissingDependencyError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError("bitsandbytes", "The optimizer 'adam_8bit'") from error
    return bitsandbytes.optim.Adam8bit(groups, betas=betas, eps=eps)


@OPTIMIZERS.register("signum")
def signum(groups: Groups, *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns `Signum` with its own momentum."""
    return Signum(groups)


@OPTIMIZERS.register("signum_schedule_free")
def signum_schedule_free(groups: Groups, *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns the sign of the gradient, averaged in place of momentum and of a falling learning rate."""
    return ScheduleFree(Signum(groups, momentum=0.0), beta=_SIGN_BETA)


@OPTIMIZERS.register("adam_schedule_free")
def adam_schedule_free(groups: Groups, *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns Adam whose weights are averaged in place of momentum, with the first of the betas, and of a falling learning rate."""
    return ScheduleFree(torch.optim.Adam(groups, betas=(0.0, betas[1]), eps=eps), beta=betas[0])


@OPTIMIZERS.register("muon")
def muon(groups: Groups, *, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """Returns Muon for matrices, with steps as large as Adam's at the same learning rate, and Adam for all else.

    No weight decay, as elsewhere here. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon;
    Liu et al. 2025, https://arxiv.org/abs/2502.16982, section 2.2.

    Raises:
        ConfigError: PyTorch is older than its Muon.
    """
    build = getattr(torch.optim, "Muon", None)
    if build is None:
        raise ConfigError(
            f"The optimizer 'muon' is not in PyTorch {torch.__version__}; 2.9 or later is needed. Upgrade with: pip install 'torch>=2.9'"
        )
    matrices, others = (
        _where(groups, lambda p, is_matrix=is_matrix: (p.ndim == 2) is is_matrix) for is_matrix in (True, False)
    )
    optimizers = []
    if matrices:
        optimizers.append(build(matrices, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    if others:
        optimizers.append(torch.optim.Adam(others, betas=betas, eps=eps))
    return MultiOptimizer(optimizers)


def _where(groups: Groups, condition: Callable[[torch.Tensor], bool]) -> Groups:
    """Returns the groups with those of their parameters that fulfil a condition, without empty ones."""
    chosen = [{**group, "params": [p for p in group["params"] if condition(p)]} for group in groups]
    return [group for group in chosen if group["params"]]
