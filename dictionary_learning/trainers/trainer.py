"""The module `trainers.trainer` of dictionary-learning, built on this package."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.ops._row_updates import normalize_rows_, remove_parallel_part_
from dictionary_learning.trainers import SAETrainer
from dictionary_learning.trainers._row_adam import Closure, RowAdam
from dictionary_learning.trainers._schedules import Rewarm, WarmupDecay, ramp


class ConstrainedAdam(RowAdam):
    """Adam, where some parameters have columns of unit norm, or rows if their latents come first.

    Columns are those of `torch.nn.Linear`, as in dictionary-learning. Parameters that a dictionary
    of this package yields by `ae.decoder.parameters()` have latents first.
    """

    def __init__(
        self,
        params: Iterable[Any],
        constrained_params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        constrained = list(constrained_params)
        by_row = {id(p) for p in constrained if getattr(p, "latents_first", False)}
        groups = [{"params": [p], "unit_rows": id(p) in by_row} for p in params]
        super().__init__(groups, lr=lr, betas=betas)
        self._by_column = [p for p in constrained if id(p) not in by_row]

    def step(self, closure: Closure = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.no_grad():
            for p in self._by_column:
                if p.grad is not None:
                    remove_parallel_part_(_columns(p.grad), torch.nn.functional.normalize(_columns(p), dim=1))
        loss = super().step(closure)
        with torch.no_grad():
            for p in self._by_column:
                normalize_rows_(_columns(p))
        return loss


def _columns(tensor: Tensor) -> Tensor:
    """Returns the columns of a matrix, or a vector as one column, as rows; a view."""
    return tensor.unsqueeze(0) if tensor.ndim == 1 else tensor.T


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
