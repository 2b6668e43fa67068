"""TopK: the k largest latents of each token."""

import dataclasses

from dictionary_learning.dictionaries import AutoEncoderTopK, geometric_median
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity, TopK
from dictionary_learning.latents import top_k_of
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._top_k_family import (
    ReconstructionTerm,
    TopKFamilyTrainer,
    reconstruction_loss,
    smallest_per_token,
)

_WIDE = 4
"""Multi-TopK also decodes the 4k largest latents, with weight 1/8 (Gao et al. 2024, section 6)."""
_WIDE_WEIGHT = 1 / 8


@TRAINERS.register("top_k")
class TrainerTopK(TopKFamilyTrainer):
    """Trains a dictionary that keeps the k largest latents of each token.

    loss = |y - y_hat|^2 / E|y - mean|^2 + auxk_alpha * AuxK
    AuxK = min(n_dead / k_aux, 1) * |e - e_hat|^2 / E|e|^2

    Here e = y - y_hat is constant, and e_hat is decoded from the k_aux largest dead latents of each
    token (AuxK). E|e|^2 is that of the last step, so that parts of a batch add up to the whole.
    Decoder rows keep unit norm. b_dec starts as the geometric median.
    Gao et al. 2024, https://arxiv.org/abs/2406.04093, sections 2.1, 2.3, A.1 and A.2.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TopKFamilyTrainer.Config):
        """Settings of TopK."""

        multi_topk: bool = False
        """Whether the 4k largest latents are decoded too, with weight 1/8 (Multi-TopK)."""

    settings: Config
    smallest_kept = smallest_per_token

    def nonlinearity(self) -> Nonlinearity:
        return TopK(self.settings.k)

    def objective(self, batch: Batch) -> Loss:
        if not self.settings.multi_topk:
            return super().objective(batch)
        k, dictionary = self.annealed_k.now, self.dictionary
        wide = dictionary.encode_sparse(batch.x, min(_WIDE * k, dictionary.dict_size))
        kept = top_k_of(wide, k)
        terms = [
            ReconstructionTerm("l2_loss", 1.0, dictionary.decode_latents(kept, batch.x)),
            ReconstructionTerm("multi_topk_loss", _WIDE_WEIGHT, dictionary.decode_latents(wide, batch.x)),
        ]
        return reconstruction_loss(batch.y, kept, terms, self.error_scale)


TopKTrainer = TrainerTopK
"""The same class by its later name."""

__all__ = ["AutoEncoderTopK", "TopKTrainer", "TrainerTopK", "geometric_median"]
