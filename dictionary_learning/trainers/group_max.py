"""GroupMax: the largest latent of each of k groups."""

import dataclasses

from dictionary_learning.dictionaries.nonlinearities import GroupMax, Nonlinearity
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._components import ScheduledValue
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._top_k_family import TopKFamilyConfig, reconstruction_loss


@TRAINERS.register("group_max")
class GroupMaxTrainer(SAETrainer):
    """Trains a dictionary that keeps the largest latent of each of k groups.

    The loss is TopK's (`TrainerTopK`). EleutherAI's sparsify has this nonlinearity.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TopKFamilyConfig):
        """Settings of GroupMax."""

    settings: Config
    auxk_is_share_of_error = False

    def nonlinearity(self) -> Nonlinearity:
        return GroupMax(self.settings.k)

    def setup(self) -> None:
        self.annealed_k = ScheduledValue("effective_l0", self.settings.k_at)
        self.components["k"] = self.annealed_k

    def objective(self, batch: Batch) -> Loss:
        latents = self.dictionary.encode_sparse(batch.x, self.annealed_k.now)
        outputs = self.dictionary.decode_latents(latents, batch.x)
        return reconstruction_loss(batch.y, latents, outputs, self.error_scale)
