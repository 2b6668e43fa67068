"""End to end: a TopK dictionary that is trained on the loss of the model."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from dictionary_learning.dictionaries.nonlinearities import Nonlinearity, TopK
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss, StepPart
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._top_k_family import (
    TopKFamilyConfig,
    scheduled_k,
    smallest_per_token,
    top_k_loss,
    update_thresholds_,
)


@TRAINERS.register("end_to_end")
class EndToEndTrainer(SAETrainer):
    """Trains a TopK dictionary so that the model predicts the same with its reconstruction.

    loss = KL(p | q)

    Here p is the model's prediction of each next token, and q the one with the reconstruction
    spliced in. Gradients flow through the model to the dictionary only. Every other trainer does
    the same with `loss_fn`. Needs contexts: `trainSAE(ContextStream(text, model, site), ...)`.
    Braun et al. 2024, https://arxiv.org/abs/2405.12241.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TopKFamilyConfig):
        """Settings of end-to-end training."""

        loss_fn: Literal["reconstruction", "ce", "kl"] = "kl"
        """Training objective: the model's cross-entropy, the KL divergence, or the error only."""

    settings: Config
    spreads_latents = True  # where the loss is the error: the model's needs contexts
    annealed_k = component(scheduled_k)

    def nonlinearity(self) -> Nonlinearity:
        return TopK(self.settings.k)

    def objective(self, batch: Batch) -> Loss:
        return top_k_loss(self, batch, self.annealed_k.now)

    def after_step(self, parts: Sequence[StepPart]) -> None:
        update_thresholds_(self, self.settings, parts, smallest_per_token)
