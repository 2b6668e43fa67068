"""AbsTopK: the k largest latents of either sign."""

from dictionary_learning.dictionaries.nonlinearities import AbsTopK, Nonlinearity
from dictionary_learning.latents import SparseLatents
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.batch import Batch
from dictionary_learning.trainers.selecting import Attempt, SelectingTrainer


@TRAINERS.register("abs_top_k")
class AbsTopKTrainer(SelectingTrainer):
    """Trains a dictionary that keeps the k latents of each token with the largest absolute value.

    https://arxiv.org/abs/2510.00404; the objective is that of `SelectingTrainer`.
    """

    def nonlinearity(self) -> Nonlinearity:
        return AbsTopK(self.last_k)

    def attempts(self, batch: Batch) -> tuple[SparseLatents, list[Attempt]]:
        return self.plain(batch)
