"""End to end: what counts is what the model loses."""

import dataclasses
from typing import Literal

from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.top_k import TrainerTopK


@TRAINERS.register("end_to_end")
class EndToEndTrainer(TrainerTopK):
    """Trains a TopK dictionary so that the model predicts with its reconstruction what it predicts without.

    KL(p | q), p the untouched model's prediction of each next token, q that with the reconstruction in the activations' place

    Gradients go through the model to the dictionary alone. Every other trainer does the same with `loss_fn`. Needs contexts:
    `trainSAE(ContextStream(text, model, site), ...)`.
    Braun et al. 2024, https://arxiv.org/abs/2405.12241.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TrainerTopK.Config):
        """Settings of end-to-end training."""

        loss_fn: Literal["reconstruction", "ce", "kl"] = "kl"
        """What is to be small: cross-entropy, divergence, or the error alone."""
