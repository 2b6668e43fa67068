"""L1: the autoencoders of Bricken et al., and those of Anthropic's April update."""

import dataclasses
from typing import ClassVar

from dictionary_learning.config import auto, setting
from dictionary_learning.dictionaries import AutoEncoderNew
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity, ReLU
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._config import decay_after
from dictionary_learning.trainers._penalties import PenaltyConfig, penalized_loss, scheduled_coefficient
from dictionary_learning.trainers._sae_trainer import SAETrainer


@TRAINERS.register("standard")
class TrainerStandard(SAETrainer):
    """Trains a dictionary with ReLU and a penalty, by default L1, and decoder rows of unit norm.

    loss = |y - y_hat|^2 + sparsity_penalty * sum_i f_i

    Bricken et al. 2023, "Towards Monosemanticity", Transformer Circuits. `resample_steps` turns
    resampling on.
    """

    class Config(PenaltyConfig):
        """Settings of L1."""

        has_thresholds: ClassVar[bool | None] = False

    settings: Config
    spreads_latents = True
    coefficient = component(scheduled_coefficient)

    def nonlinearity(self) -> Nonlinearity:
        return ReLU()

    def objective(self, batch: Batch) -> Loss:
        return penalized_loss(self, self.settings, batch, self.settings.penalty(), self.coefficient.now)


StandardTrainer = TrainerStandard
"""The same class by its later name."""


@TRAINERS.register("standard_april_update")
class StandardTrainerAprilUpdate(SAETrainer):
    """Trains a dictionary with ReLU and an L1 penalty weighted by decoder norms.

    loss = |y - y_hat|^2 + sparsity_penalty * sum_i f_i |d_i|

    Rows are free, b_dec is not subtracted, gradients have norm 1 at most, and the learning rate
    decays to zero over the last fifth of the run. Made for activations of mean norm
    sqrt(activation_dim) (`normalize="sqrt_dim"`), there with a penalty of 5.
    Conerly et al. 2024, "Update on how we train SAEs", Transformer Circuits, April update.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PenaltyConfig):
        """Settings of the April update."""

        has_thresholds: ClassVar[bool | None] = False
        subtracts_b_dec: ClassVar[bool] = False
        autoencoder_class: ClassVar[type | None] = AutoEncoderNew

        scale_sparsity_penalty_by_decoder_norm: bool = True
        """Whether latents are weighted by their decoder norm."""
        unit_norm_decoder: bool = False
        """Whether decoder rows are kept at unit norm."""
        decoder_init_norm: float | None = setting(0.1, above=0)
        """Initial norm of the decoder rows."""
        max_grad_norm: float | None = setting(1.0, above=0)
        decay_start: int = auto(decay_after(4 / 5), at_least=0)
        """The step at which the learning rate starts to decay; by default after 80% of the run."""

    settings: Config
    spreads_latents = True
    coefficient = component(scheduled_coefficient)

    def nonlinearity(self) -> Nonlinearity:
        return ReLU()

    def objective(self, batch: Batch) -> Loss:
        return penalized_loss(self, self.settings, batch, self.settings.penalty(), self.coefficient.now)
