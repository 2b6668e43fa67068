"""P-annealing of gated dictionaries."""

import dataclasses
from typing import ClassVar

from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers.gated import GatePenaltyTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer


@TRAINERS.register("gated_anneal")
class GatedAnnealTrainer(GatePenaltyTrainer, PAnnealTrainer):
    """Trains a gated dictionary with a penalty on its gates whose power decays.

    The loss is that of `GatedSAETrainer`, with sum_i relu(gate_i)^p as the penalty.
    Karvonen et al. 2024, https://arxiv.org/abs/2408.00113, section 3.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PAnnealTrainer.Config):
        """Settings of gated p-annealing."""

        default_lr: ClassVar[float] = 3e-4

    settings: Config
