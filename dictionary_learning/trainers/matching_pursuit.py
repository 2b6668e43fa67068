"""Matching pursuit: one latent after another."""

import dataclasses

from dictionary_learning.dictionaries.nonlinearities import MatchingPursuit, Nonlinearity
from dictionary_learning.latents import SparseLatents
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.batch import Batch
from dictionary_learning.trainers.selecting import Attempt, SelectingTrainer


@TRAINERS.register("matching_pursuit")
class MatchingPursuitTrainer(SelectingTrainer):
    """Trains a dictionary that takes k latents one after another, each for what the others have left.

    Costa et al. 2025, https://arxiv.org/abs/2506.03093; the objective is that of `SelectingTrainer`.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SelectingTrainer.Config):
        """Settings of matching pursuit."""

        decoder_lr_factor: float = 1.0
        """What the learning rate is multiplied by for the one matrix."""

    def nonlinearity(self) -> Nonlinearity:
        return MatchingPursuit(self.last_k)

    def attempts(self, batch: Batch) -> tuple[SparseLatents, list[Attempt]]:
        return self.plain(batch)
