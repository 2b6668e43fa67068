"""GroupMax: one latent of each group."""

from dictionary_learning.dictionaries.nonlinearities import GroupMax, Nonlinearity
from dictionary_learning.latents import SparseLatents
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.batch import Batch
from dictionary_learning.trainers.selecting import Attempt, SelectingTrainer


@TRAINERS.register("group_max")
class GroupMaxTrainer(SelectingTrainer):
    """Trains a dictionary that keeps the largest latent of each of k groups, as EleutherAI's sparsify."""

    def nonlinearity(self) -> Nonlinearity:
        return GroupMax(self.last_k)

    def attempts(self, batch: Batch) -> tuple[SparseLatents, list[Attempt]]:
        return self.plain(batch)
