"""AbsTopK: the k latents of largest absolute value."""

import dataclasses

from dictionary_learning.dictionaries.nonlinearities import AbsTopK, Nonlinearity
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._top_k_family import AnnealedK, TopKFamilyConfig, top_k_loss


@TRAINERS.register("abs_top_k")
class AbsTopKTrainer(SAETrainer):
    """Trains a dictionary that keeps the k latents of each token with the largest absolute value.

    The loss is TopK's (`TrainerTopK`). https://arxiv.org/abs/2510.00404.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TopKFamilyConfig):
        """Settings of AbsTopK."""

    settings: Config
    auxk_is_share_of_error = False

    def nonlinearity(self) -> Nonlinearity:
        return AbsTopK(self.settings.k)

    def setup(self) -> None:
        self.annealed_k = AnnealedK(self.settings)
        self.components["k"] = self.annealed_k

    def objective(self, batch: Batch) -> Loss:
        return top_k_loss(self.dictionary, batch, self.annealed_k.now, self.error_scale)
