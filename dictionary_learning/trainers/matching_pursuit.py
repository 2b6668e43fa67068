"""Matching pursuit: latents are chosen one after another."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from dictionary_learning.config import setting
from dictionary_learning.dictionaries.nonlinearities import MatchingPursuit, Nonlinearity
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._top_k_family import NO_THRESHOLD, TopKFamilyConfig, scheduled_k, top_k_loss


@TRAINERS.register("matching_pursuit")
class MatchingPursuitTrainer(SAETrainer):
    """Trains a dictionary that chooses k latents one after another, each for the current residual.

    The loss is TopK's (`TrainerTopK`). Costa et al. 2025, https://arxiv.org/abs/2506.03093.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TopKFamilyConfig):
        """Settings of MatchingPursuit."""

        unread: ClassVar[Mapping[str, tuple[Any, ...]]] = {
            **NO_THRESHOLD,
            "encoder_lr_factor": ("beside decoder_lr_factor, which is that of the one matrix",),
            "init_encoder_as_decoder_transpose": ("with matching pursuit, which has one matrix", True),
            "rank_by_norm": ("on rows of unit norm", False),
            "scale_encoder": ("on rows of unit norm",),
            "unit_norm_decoder": ("with matching pursuit, which needs rows of unit norm", True),
        }

        encoder_lr_factor: float = setting(1.0, at_least=0)
        scale_encoder: bool = False
        decoder_lr_factor: float = setting(1.0, at_least=0)
        """Factor of the learning rate for the one matrix that encodes and decodes."""

    settings: Config
    annealed_k = component(scheduled_k)

    def nonlinearity(self) -> Nonlinearity:
        return MatchingPursuit(self.settings.k)

    def objective(self, batch: Batch) -> Loss:
        return top_k_loss(self, batch, self.annealed_k.now)
