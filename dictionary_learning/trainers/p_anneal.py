"""P-annealing: a penalty that turns from L1 towards L0."""

import dataclasses

from dictionary_learning.dictionaries.nonlinearities import Nonlinearity, ReLU
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._p_annealing import AnnealedPenalty, PAnnealConfig
from dictionary_learning.trainers._penalized import penalized_loss, sparsity_of
from dictionary_learning.trainers._penalties import Sparsity
from dictionary_learning.trainers._sae_trainer import SAETrainer


@TRAINERS.register("p_anneal")
class PAnnealTrainer(SAETrainer):
    """Trains a dictionary with ReLU and a penalty whose power decays.

    loss = |y - y_hat|^2 + sparsity_penalty * sum_i f_i^p,  p from p_start to p_end

    Karvonen et al. 2024, https://arxiv.org/abs/2408.00113, section 3.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PAnnealConfig):
        """Settings of p-annealing."""

    settings: Config

    def nonlinearity(self) -> Nonlinearity:
        return ReLU()

    def setup(self) -> None:
        self.annealed = AnnealedPenalty(self.settings, self._penalized, self.device)
        self.components["penalty"] = self.annealed

    def objective(self, batch: Batch) -> Loss:
        annealed = self.annealed
        return annealed.corrected(penalized_loss(self, self.settings, batch, annealed.penalty, annealed.coefficient))

    def _penalized(self, loss: Loss) -> Sparsity:
        _, latents, pre = loss.reconstruction
        assert pre is not None
        return sparsity_of(self.dictionary, self.settings, latents, pre)
