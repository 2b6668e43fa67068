"""P-annealing of gated dictionaries."""

import dataclasses
from typing import ClassVar

from dictionary_learning.dictionaries.nonlinearities import Gated, Nonlinearity
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._p_annealing import AnnealedPenalty, PAnnealConfig
from dictionary_learning.trainers._penalized import sparsity_of
from dictionary_learning.trainers._penalties import Sparsity
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers.gated import gated_loss


@TRAINERS.register("gated_anneal")
class GatedAnnealTrainer(SAETrainer):
    """Trains a gated dictionary with a penalty on its gates whose power decays.

    The loss is that of `GatedSAETrainer`, with sum_i relu(gate_i)^p as the penalty.
    Karvonen et al. 2024, https://arxiv.org/abs/2408.00113, section 3.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PAnnealConfig):
        """Settings of gated p-annealing."""

        default_lr: ClassVar[float] = 3e-4

    settings: Config

    def nonlinearity(self) -> Nonlinearity:
        return Gated()

    def setup(self) -> None:
        self.annealed = AnnealedPenalty(self.settings, self._penalized, self.device)
        self.components["penalty"] = self.annealed

    def objective(self, batch: Batch) -> Loss:
        annealed = self.annealed
        return annealed.corrected(gated_loss(self, self.settings, batch, annealed.penalty, annealed.coefficient))

    def _penalized(self, loss: Loss) -> Sparsity:
        pre = loss.reconstruction.pre_activations
        assert pre is not None
        return sparsity_of(self.dictionary, self.settings, self.dictionary.pointwise("gate", pre), pre)
