"""P-annealing of gated dictionaries."""

from typing import ClassVar

from dictionary_learning.dictionaries.nonlinearities import Gated, Nonlinearity
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers.gated import gated_loss
from dictionary_learning.trainers.p_anneal import PAnnealConfig, annealed_penalty


@TRAINERS.register("gated_anneal")
class GatedAnnealTrainer(SAETrainer):
    """Trains a gated dictionary with a penalty on its gates whose power decays.

    The loss is that of `GatedSAETrainer`, with sum_i relu(gate_i)^p as the penalty.
    Karvonen et al. 2024, https://arxiv.org/abs/2408.00113, section 3.
    """

    class Config(PAnnealConfig):
        """Settings of gated p-annealing."""

        default_lr: ClassVar[float] = 3e-4
        penalizes_gates: ClassVar[bool] = True

    settings: Config
    spreads_latents = True
    annealed = component(annealed_penalty)

    def nonlinearity(self) -> Nonlinearity:
        return Gated()

    def objective(self, batch: Batch) -> Loss:
        annealed = self.annealed
        return annealed.corrected(gated_loss(self, self.settings, batch, annealed.penalty, annealed.coefficient))
