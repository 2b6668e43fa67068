"""AbsTopK: the k latents of largest absolute value."""

from dictionary_learning.dictionaries.nonlinearities import AbsTopK, Nonlinearity
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._top_k_family import TopKFamilyTrainer


@TRAINERS.register("abs_top_k")
class AbsTopKTrainer(TopKFamilyTrainer):
    """Trains a dictionary that keeps the k latents of each token with the largest absolute value.

    The loss is TopK's (`TrainerTopK`). https://arxiv.org/abs/2510.00404.
    """

    def nonlinearity(self) -> Nonlinearity:
        return AbsTopK(self.settings.k)
