"""BatchTopK: k latents of each token, on average over a batch."""

from dictionary_learning.dictionaries import BatchTopKSAE
from dictionary_learning.dictionaries.nonlinearities import BatchTopK, Nonlinearity
from dictionary_learning.latents import SparseLatents
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.batch import Batch
from dictionary_learning.trainers.selecting import Attempt, SelectingTrainer


@TRAINERS.register("batch_top_k")
class BatchTopKTrainer(SelectingTrainer):
    """Trains a dictionary that keeps the k * batch largest latents of a batch.

    Bussmann et al. 2024, https://arxiv.org/abs/2412.06410; the objective is that of `SelectingTrainer`.
    """

    def nonlinearity(self) -> Nonlinearity:
        return BatchTopK(self.last_k)

    def attempts(self, batch: Batch) -> tuple[SparseLatents, list[Attempt]]:
        return self.plain(batch)


__all__ = ["BatchTopKSAE", "BatchTopKTrainer"]
