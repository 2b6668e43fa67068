"""TopK: k latents of each token."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import AutoEncoderTopK, Dictionary
from dictionary_learning.latents import SparseLatents, largest
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.selecting import Part, SelectingTrainer

_MULTI_TOPK = 4
"""Multi-TopK also decodes the 4k largest latents, with weight 1/8 (Gao et al. 2024, appendix)."""
_MULTI_TOPK_WEIGHT = 1 / 8


@TRAINERS.register("top_k")
class TrainerTopK(SelectingTrainer):
    """Trains an autoencoder that keeps the k largest latents of each token.

    Gao et al. 2024, https://arxiv.org/abs/2406.04093, section 2.3; the objective is that of `SelectingTrainer`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SelectingTrainer.Config):
        """Settings of TopK."""

        dict_class: type | None = None
        """The dictionary's class: AutoEncoderTopK, or one built with the same arguments."""
        multi_topk: bool = False
        """Whether the 4k largest latents are decoded too, with weight 1/8."""

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    def build(self) -> Dictionary:
        settings = self.settings
        build = settings.dict_class or AutoEncoderTopK
        return build(self.activation_dim, self.dict_size, settings.k, generator=self.generator)

    def parts(self, x: Float[Tensor, "batch activation_dim"]) -> list[Part]:
        if not self.settings.multi_topk:
            return [Part("l2_loss", 1.0, self.dictionary.encode_sparse(x, self.k))]
        wide = self.dictionary.encode_sparse(x, min(_MULTI_TOPK * self.k, self.dict_size))
        return [Part("l2_loss", 1.0, largest(wide, self.k)), Part("multi_topk_loss", _MULTI_TOPK_WEIGHT, wide)]

    def lowest(self, latents: SparseLatents) -> Float[Tensor, ""]:
        """Returns the mean over tokens of the least positive value kept."""
        values = latents.values.detach()
        least = torch.where(values > 0, values, torch.inf).amin(-1)
        some = least.isfinite()
        return torch.where(some.any(), torch.where(some, least, 0).sum() / some.sum(), torch.inf)


TopKTrainer = TrainerTopK
"""The same class by its later name."""
