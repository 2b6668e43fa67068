"""Gated: whether a latent fires and how strongly are decided apart."""

import dataclasses
from typing import ClassVar

from torch import Tensor

from dictionary_learning.dictionaries import GatedAutoEncoder
from dictionary_learning.dictionaries.nonlinearities import Gated, Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.batch import Batch
from dictionary_learning.trainers.losses import squared_error
from dictionary_learning.trainers.penalized import PenalizedTrainer
from dictionary_learning.trainers.penalties import Sparsity


class PenalizesGates(PenalizedTrainer):
    """What trainers of gated dictionaries share: the penalty is on relu of the gates, and those learn to reconstruct as well.

    |y - y_hat|^2 + sparsity_penalty * sum_i relu(gate_i) + |y - (W_dec^T relu(gate) + b_dec)|^2, W_dec and b_dec held constant there
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PenalizedTrainer.Config):
        """Settings of trainers of gated dictionaries."""

        beta1: float = 0.0
        """Adam's decay of the mean gradient."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.sparsity_function in ("l0", "step", "target_l0", "quadratic_l0", "quadratic"):
                raise ConfigError(
                    f"Gates have no thresholds for sparsity_function={self.sparsity_function!r}; use l1 or lp."
                )

    def nonlinearity(self) -> Nonlinearity:
        return Gated()

    def sparsity(self, latents: Latents, pre: Latents) -> Sparsity:
        return super().sparsity(self.dictionary.pointwise("gate", pre), pre)

    def further_terms(self, latents: Latents, pre: Latents, batch: Batch) -> list[tuple[str, float, Tensor]]:
        gates = self.dictionary.pointwise("gate", pre)
        frozen = self.dictionary.decode_latents(gates, batch.x, frozen=True)
        return [("gate_loss", 1.0, squared_error(frozen, batch.y))]


@TRAINERS.register("gated")
class GatedSAETrainer(PenalizesGates):
    """Trains a gated dictionary.

    Rajamanoharan et al. 2024, https://arxiv.org/abs/2404.16014, equation 8. Adam keeps no mean of the gradient, as in the paper.
    """

    default_lr: ClassVar[float] = 5e-5


__all__ = ["GatedAutoEncoder", "GatedSAETrainer", "PenalizesGates"]
