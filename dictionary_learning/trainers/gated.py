"""Gated: whether a latent fires and how strongly are decided separately."""

import dataclasses
from typing import ClassVar

from dictionary_learning.config import setting
from dictionary_learning.dictionaries import GatedAutoEncoder
from dictionary_learning.dictionaries.nonlinearities import Gated, Nonlinearity
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._losses import squared_error
from dictionary_learning.trainers._penalties import (
    Penalty,
    PenaltyConfig,
    penalized_loss,
    scheduled_coefficient,
)
from dictionary_learning.trainers._sae_trainer import SAETrainer


@TRAINERS.register("gated")
class GatedSAETrainer(SAETrainer):
    """Trains a gated dictionary.

    loss = |y - y_hat|^2 + sparsity_penalty * sum_i relu(gate_i) + |y - (W_dec^T relu(gate) +
    b_dec)|^2

    W_dec and b_dec are constant in the last term. Adam keeps no mean of the gradient, as in the
    paper.
    Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, equation 8.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PenaltyConfig):
        """Settings of gated dictionaries."""

        default_lr: ClassVar[float] = 5e-5
        penalizes_gates: ClassVar[bool] = True
        has_thresholds: ClassVar[bool | None] = False

        beta1: float = setting(0.0, at_least=0, below=1)

    settings: Config
    spreads_latents = True
    coefficient = component(scheduled_coefficient)

    def nonlinearity(self) -> Nonlinearity:
        return Gated()

    def objective(self, batch: Batch) -> Loss:
        return gated_loss(self, self.settings, batch, self.settings.penalty(), self.coefficient.now)


def gated_loss(
    trainer: SAETrainer, settings: PenaltyConfig, batch: Batch, penalty: Penalty, coefficient: float
) -> Loss:
    """Returns the loss of a gated dictionary, whose gates are penalized and reconstruct as well."""
    loss = penalized_loss(trainer, settings, batch, penalty, coefficient)
    dictionary, pre = trainer.dictionary, loss.reconstruction.pre_activations
    assert pre is not None
    # magnitudes get no gradient from the penalty and from this term, which see the gates only
    frozen = dictionary.decode_latents(dictionary.pointwise("gate", pre), batch.x, frozen=True)
    gate_error = squared_error(frozen, batch.y)
    return loss._replace(total=loss.total + gate_error, terms={**loss.terms, "gate_loss": gate_error})


__all__ = ["GatedAutoEncoder", "GatedSAETrainer"]
