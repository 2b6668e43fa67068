"""P-annealing of gated dictionaries."""

import dataclasses
from typing import ClassVar

from dictionary_learning.dictionaries import Trainable
from dictionary_learning.latents import Latents
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.batch import Loss
from dictionary_learning.trainers.gdm import PenalizesGates
from dictionary_learning.trainers.p_anneal import AnnealsP


@TRAINERS.register("gated_anneal")
class GatedAnnealTrainer(AnnealsP, PenalizesGates):
    """Trains a gated dictionary with a penalty on its gates whose power falls (Karvonen et al. 2024, https://arxiv.org/abs/2408.00113)."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(AnnealsP.Config, PenalizesGates.Config):
        """Settings of gated p-annealing."""

    default_lr: ClassVar[float] = 3e-4
    dictionary: Trainable

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    def penalized(self, loss: Loss) -> Latents:
        pre = loss.reconstruction.pre_activations
        assert pre is not None
        return self.dictionary.pointwise("gate", pre)
