"""L1: the autoencoders of Bricken et al., and those of the April update."""

import dataclasses
from typing import ClassVar

from dictionary_learning.dictionaries import AutoEncoderNew
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity, ReLU
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.penalized import PenalizedTrainer
from dictionary_learning.trainers.schedules import Schedule


@TRAINERS.register("standard")
class TrainerStandard(PenalizedTrainer):
    """Trains a dictionary with a rectifier and a penalty, by default L1, with decoder rows of unit norm.

    Bricken et al. 2023, "Towards Monosemanticity", Transformer Circuits. Resampling is on with `resample_steps`.
    """

    default_lr: ClassVar[float] = 1e-3

    def nonlinearity(self) -> Nonlinearity:
        return ReLU()


StandardTrainer = TrainerStandard
"""The same class by its later name."""


@TRAINERS.register("standard_april_update")
class StandardTrainerAprilUpdate(PenalizedTrainer):
    """Trains a dictionary with a rectifier and an L1 penalty in which each latent weighs as much as what it writes is long.

    |y - y_hat|^2 + sparsity_penalty * sum_i f_i |d_i|

    Rows are free, b_dec is not subtracted, gradients have norm 1 at most, and the learning rate falls to zero over the last fifth
    of the run. Made for activations whose mean norm is sqrt(activation_dim) (`normalize="sqrt_dim"`), there with a penalty of 5.
    Conerly et al. 2024, "Update on how we train SAEs", Transformer Circuits, April update.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PenalizedTrainer.Config):
        """Settings of the April update."""

        scale_sparsity_penalty_by_decoder_norm: bool = True
        """Whether a latent weighs as much as the norm of what it writes."""
        unit_norm_decoder: bool | None = False
        """Whether decoder rows have unit norm after each step."""
        decoder_init_norm: float | None = 0.1
        """Norm of the decoder's rows at first."""
        max_grad_norm: float | None = 1.0
        """Gradients are scaled down to this common norm."""

    default_lr: ClassVar[float] = 1e-3
    subtracts_b_dec: ClassVar[bool] = False

    def nonlinearity(self) -> Nonlinearity:
        return ReLU()

    def named_class(self) -> type:
        return AutoEncoderNew

    def build_schedule(self) -> Schedule:
        settings = self.settings
        if settings.decay_start is None:
            warmup = min(1000, self.steps // 10) if settings.warmup_steps is None else settings.warmup_steps
            self.config_values = settings.replace(decay_start=max(self.steps * 4 // 5, min(warmup, self.steps)))
        return super().build_schedule()
