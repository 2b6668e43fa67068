"""GroupMax: the largest latent of each of k groups."""

from dictionary_learning.dictionaries.nonlinearities import GroupMax, Nonlinearity
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._top_k_family import TopKFamilyTrainer


@TRAINERS.register("group_max")
class GroupMaxTrainer(TopKFamilyTrainer):
    """Trains a dictionary that keeps the largest latent of each of k groups.

    The loss is TopK's (`TrainerTopK`). EleutherAI's sparsify has this nonlinearity.
    """

    def nonlinearity(self) -> Nonlinearity:
        return GroupMax(self.settings.k)
