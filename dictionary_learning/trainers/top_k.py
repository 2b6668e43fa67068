"""TopK: k latents of each token."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import AutoEncoderTopK, geometric_median
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity, TopK
from dictionary_learning.latents import SparseLatents, top_k_of
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.batch import Batch
from dictionary_learning.trainers.selecting import Attempt, SelectingTrainer

_MULTI_TOPK = 4
"""Multi-TopK also decodes the 4k largest latents, with weight 1/8 (Gao et al. 2024, appendix)."""
_MULTI_TOPK_WEIGHT = 1 / 8


@TRAINERS.register("top_k")
class TrainerTopK(SelectingTrainer):
    """Trains a dictionary that keeps the k largest latents of each token.

    Gao et al. 2024, https://arxiv.org/abs/2406.04093, section 2.3; the objective is that of `SelectingTrainer`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SelectingTrainer.Config):
        """Settings of TopK."""

        multi_topk: bool = False
        """Whether the 4k largest latents are decoded too, with weight 1/8."""

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    def nonlinearity(self) -> Nonlinearity:
        return TopK(self.last_k)

    def attempts(self, batch: Batch) -> tuple[SparseLatents, list[Attempt]]:
        if not self.settings.multi_topk:
            return self.plain(batch)
        wide, _ = self.dictionary.encode_latents(batch.x, min(_MULTI_TOPK * self.k, self.dict_size))
        assert isinstance(wide, SparseLatents)
        kept = top_k_of(wide, self.k)
        return kept, [
            Attempt("l2_loss", 1.0, self.dictionary.decode_latents(kept, batch.x)),
            Attempt("multi_topk_loss", _MULTI_TOPK_WEIGHT, self.dictionary.decode_latents(wide, batch.x)),
        ]

    def least(self, latents: SparseLatents) -> Float[Tensor, ""]:
        """Returns the mean over tokens of the least positive value kept."""
        values = latents.values.detach()
        if latents.support.is_ragged:
            return super().least(latents)
        least = torch.where(values > 0, values, torch.inf).amin(-1)
        some = least.isfinite()
        return torch.where(some.any(), torch.where(some, least, 0).sum() / some.sum(), torch.inf)

    def combined(self, least: Float[Tensor, "parts"]) -> Float[Tensor, ""]:
        finite = least.isfinite()
        return torch.where(finite.any(), torch.where(finite, least, 0).sum() / finite.sum(), torch.inf)


TopKTrainer = TrainerTopK
"""The same class by its later name."""

__all__ = ["AutoEncoderTopK", "TopKTrainer", "TrainerTopK", "geometric_median"]
