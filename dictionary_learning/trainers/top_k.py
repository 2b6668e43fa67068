"""TopK: the k largest latents of each token."""

import dataclasses
from collections.abc import Sequence

from dictionary_learning.dictionaries import AutoEncoderTopK, geometric_median
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity, TopK
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss, StepPart
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._top_k_family import (
    ReconstructionTerm,
    TopKFamilyConfig,
    largest_of,
    reconstruction_loss,
    scheduled_k,
    smallest_per_token,
    update_thresholds_,
)

_WIDE = 4
"""Multi-TopK also decodes the 4k largest latents, with weight 1/8 (Gao et al. 2024, section 6)."""
_WIDE_WEIGHT = 1 / 8


@TRAINERS.register("top_k")
class TrainerTopK(SAETrainer):
    """Trains a dictionary that keeps the k largest latents of each token.

    loss = |y - y_hat|^2 / E|y - mean|^2 + auxk_alpha * min(n_dead / k_aux, 1) * |e - e_hat|^2 /
    E|e|^2

    Here e = y - y_hat is constant, and e_hat is decoded from the k_aux largest dead latents of each
    token (AuxK). E|e|^2 is that of the last step, so that parts of a batch add up to the whole.
    Decoder rows keep unit norm. b_dec starts as the geometric median.
    Gao et al. 2024, https://arxiv.org/abs/2406.04093, sections 2.1, 2.3, A.1 and A.2.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TopKFamilyConfig):
        """Settings of TopK."""

        multi_topk: bool = False
        """Whether the 4k largest latents are decoded too, with weight 1/8 (Multi-TopK)."""

    settings: Config
    spreads_latents = True
    annealed_k = component(scheduled_k)

    def nonlinearity(self) -> Nonlinearity:
        return TopK(self.settings.k)

    def objective(self, batch: Batch) -> Loss:
        k, dictionary, further = self.annealed_k.now, self.dictionary, []
        wide = min(_WIDE * k, self.dict_size) if self.settings.multi_topk else k
        latents = dictionary.encode_sparse(batch.x, wide)
        if self.settings.multi_topk:
            outputs = dictionary.decode_latents(latents, batch.x)
            further = [ReconstructionTerm("multi_topk_loss", _WIDE_WEIGHT, outputs)]
            latents = largest_of(dictionary, latents, k)  # (batch, k) of (batch, 4k): one selection for both
        outputs = dictionary.decode_latents(latents, batch.x)
        return reconstruction_loss(batch.y, latents, outputs, self.error_scale, further)

    def after_step(self, parts: Sequence[StepPart]) -> None:
        update_thresholds_(self, self.settings, parts, smallest_per_token)


TopKTrainer = TrainerTopK
"""The same class by its later name."""

__all__ = ["AutoEncoderTopK", "TopKTrainer", "TrainerTopK", "geometric_median"]
