"""The module `trainers.trainer` of dictionary-learning, built on this package."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.ops._row_updates import normalize_rows_, remove_parallel_part_
from dictionary_learning.trainers import SAETrainer
from dictionary_learning.trainers._row_adam import RowAdam
from dictionary_learning.trainers._schedules import Rewarm, WarmupDecay, ramp


class ConstrainedAdam(RowAdam):
    """`RowAdam`, where some parameters have unit rows (dict_size, activation_dim), not columns."""

    def __init__(
        self,
        params: Iterable[Any],
        constrained_params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        constrained = {id(p) for p in constrained_params}
        groups = [{"params": [p], "unit_rows": id(p) in constrained} for p in params]
        super().__init__(groups, lr=lr, betas=betas)


@torch.no_grad()
def set_decoder_norm_to_unit_norm(
    W_dec_DF: Float[Tensor, "activation_dim d_sae"], activation_dim: int, d_sae: int
) -> Float[Tensor, "activation_dim d_sae"]:
    """Normalizes the columns of a decoder of `torch.nn.Linear`, in place, and returns it."""
    normalize_rows_(W_dec_DF.T)
    return W_dec_DF


@torch.no_grad()
def remove_gradient_parallel_to_decoder_directions(
    W_dec_DF: Float[Tensor, "activation_dim d_sae"],
    W_dec_DF_grad: Float[Tensor, "activation_dim d_sae"],
    activation_dim: int,
    d_sae: int,
) -> Float[Tensor, "activation_dim d_sae"]:
    """Projects a gradient, column by column, orthogonal to unit columns, in place; returns it."""
    remove_parallel_part_(W_dec_DF_grad.T, W_dec_DF.T)
    return W_dec_DF_grad


def get_lr_schedule(
    total_steps: int,
    warmup_steps: int,
    decay_start: int | None = None,
    resample_steps: int | None = None,
    sparsity_warmup_steps: int | None = None,
) -> Callable[[int], float]:
    """Returns `WarmupDecay`, with a new warm-up after each resampling."""
    schedule = WarmupDecay(total_steps, warmup_steps, total_steps if decay_start is None else decay_start)
    if resample_steps is None:
        return schedule
    return Rewarm(schedule, resample_steps, max(min(warmup_steps, resample_steps), 1))


def get_sparsity_warmup_fn(total_steps: int, sparsity_warmup_steps: int | None = None) -> Callable[[int], float]:
    """Returns the factor of the penalty at each step: from 0 to 1 in the warm-up, then 1."""
    return lambda step: ramp(step, sparsity_warmup_steps or 0)


__all__ = [
    "ConstrainedAdam",
    "SAETrainer",
    "get_lr_schedule",
    "get_sparsity_warmup_fn",
    "remove_gradient_parallel_to_decoder_directions",
    "set_decoder_norm_to_unit_norm",
]
