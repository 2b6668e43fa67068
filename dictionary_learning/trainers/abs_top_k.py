"""AbsTopK: the k latents of largest absolute value."""

from dictionary_learning.dictionaries.nonlinearities import AbsTopK, Nonlinearity
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._top_k_family import NO_THRESHOLD, TopKFamilyConfig, scheduled_k, top_k_loss


@TRAINERS.register("abs_top_k")
class AbsTopKTrainer(SAETrainer):
    """Trains a dictionary that keeps the k latents of each token with the largest absolute value.

    The loss is TopK's (`TrainerTopK`). https://arxiv.org/abs/2510.00404.
    """

    class Config(TopKFamilyConfig):
        """Settings of AbsTopK."""

        unread = NO_THRESHOLD

    settings: Config
    spreads_latents = True
    annealed_k = component(scheduled_k)

    def nonlinearity(self) -> Nonlinearity:
        return AbsTopK(self.settings.k)

    def objective(self, batch: Batch) -> Loss:
        return top_k_loss(self, batch, self.annealed_k.now)
