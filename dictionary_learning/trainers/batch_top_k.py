"""BatchTopK: k latents of each token, on average over a batch."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import BatchTopKSAE, Dictionary
from dictionary_learning.latents import SparseLatents
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.selecting import Part, SelectingTrainer


@TRAINERS.register("batch_top_k")
class BatchTopKTrainer(SelectingTrainer):
    """Trains an autoencoder that keeps the k * batch largest latents of a batch.

    Bussmann et al. 2024, https://arxiv.org/abs/2412.06410; the objective is that of `SelectingTrainer`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SelectingTrainer.Config):
        """Settings of BatchTopK."""

        dict_class: type | None = None
        """The dictionary's class: BatchTopKSAE, or one built with the same arguments."""

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    def build(self) -> Dictionary:
        settings = self.settings
        build = settings.dict_class or BatchTopKSAE
        return build(self.activation_dim, self.dict_size, settings.k, generator=self.generator)

    def parts(self, x: Float[Tensor, "batch activation_dim"]) -> list[Part]:
        return [Part("l2_loss", 1.0, self.dictionary.encode_sparse(x, self.k))]

    def lowest(self, latents: SparseLatents) -> Float[Tensor, ""]:
        """Returns the least positive value kept in the batch."""
        values = latents.values.detach()
        nothing = values.new_full((1,), torch.inf)
        return torch.cat([nothing, torch.where(values > 0, values, torch.inf)]).amin()
