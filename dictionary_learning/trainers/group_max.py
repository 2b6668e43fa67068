"""GroupMax: the largest latent of each of k groups."""

from dictionary_learning.dictionaries.nonlinearities import GroupMax, Nonlinearity
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._top_k_family import NO_THRESHOLD, TopKFamilyConfig, scheduled_k, top_k_loss


@TRAINERS.register("group_max")
class GroupMaxTrainer(SAETrainer):
    """Trains a dictionary that keeps the largest latent of each of k groups.

    The loss is TopK's (`TrainerTopK`). EleutherAI's sparsify has this nonlinearity.
    """

    class Config(TopKFamilyConfig):
        """Settings of GroupMax."""

        unread = NO_THRESHOLD

    settings: Config
    annealed_k = component(scheduled_k)

    def nonlinearity(self) -> Nonlinearity:
        return GroupMax(self.settings.k)

    def objective(self, batch: Batch) -> Loss:
        return top_k_loss(self, batch, self.annealed_k.now)
