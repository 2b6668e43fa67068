"""Gated: whether a latent fires and how strongly are decided separately."""

import dataclasses
from typing import ClassVar

from dictionary_learning.config import setting
from dictionary_learning.dictionaries import GatedAutoEncoder, Reconstruction
from dictionary_learning.dictionaries.nonlinearities import Gated, Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._losses import squared_error
from dictionary_learning.trainers._penalized import PenaltyTrainer
from dictionary_learning.trainers._penalties import Penalty, Sparsity

_OF_THRESHOLDS = ("l0", "step", "target_l0", "quadratic_l0", "quadratic")


class GatePenaltyTrainer(PenaltyTrainer):
    """A gated dictionary, whose penalty is on the gates, which reconstruct as well."""

    def nonlinearity(self) -> Nonlinearity:
        return Gated()

    def penalized(self, reconstruction: Reconstruction) -> Sparsity:
        assert reconstruction.pre_activations is not None
        # magnitudes get no gradient from the penalty and the gate loss, which see the gates only
        return self._sparsity(self.dictionary.pointwise("gate", reconstruction.pre_activations), reconstruction)

    def penalized_loss(self, batch: Batch, penalty: Penalty, coefficient: float) -> Loss:
        loss = super().penalized_loss(batch, penalty, coefficient)
        pre = loss.reconstruction.pre_activations
        assert pre is not None
        frozen = self.dictionary.decode_latents(self.dictionary.pointwise("gate", pre), batch.x, frozen=True)
        gate_error = squared_error(frozen, batch.y)
        return loss._replace(total=loss.total + gate_error, terms={**loss.terms, "gate_loss": gate_error})


@TRAINERS.register("gated")
class GatedSAETrainer(GatePenaltyTrainer):
    """Trains a gated dictionary.

    loss = |y - y_hat|^2 + sparsity_penalty * sum_i relu(gate_i) + |y - y_gate|^2
    y_gate = W_dec^T relu(gate) + b_dec

    W_dec and b_dec are constant in y_gate. Adam keeps no mean of the gradient, as in the
    paper. Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, equation 8.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PenaltyTrainer.Config):
        """Settings of gated dictionaries."""

        default_lr: ClassVar[float] = 5e-5

        beta1: float = setting(0.0, at_least=0, below=1)
        """Adam's decay of the mean gradient."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.sparsity_function in _OF_THRESHOLDS:
                raise ConfigError(
                    f"Gates have no thresholds for sparsity_function={self.sparsity_function!r}; use l1 or lp."
                )

    settings: Config


__all__ = ["GatedAutoEncoder", "GatedSAETrainer"]
