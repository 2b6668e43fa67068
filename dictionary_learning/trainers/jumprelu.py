"""JumpReLU: a threshold for each latent, learnt."""

import dataclasses
from typing import ClassVar

from dictionary_learning.dictionaries import JumpReluAutoEncoder
from dictionary_learning.dictionaries.nonlinearities import JumpReLU, Nonlinearity
from dictionary_learning.ops.straight_through import KernelName
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.batch import Batch, Loss
from dictionary_learning.trainers.penalized import PenalizedTrainer


@TRAINERS.register("jump_relu")
class JumpReluTrainer(PenalizedTrainer):
    """Trains a dictionary with a threshold for each latent, and a penalty on the number of latents that fire.

    |y - y_hat|^2 + sparsity_penalty * penalty,  by default the penalty (L0 / target_l0 - 1)^2

    The gradient of L0 is taken on pre-activations, on both sides of the threshold. Thresholds do not fall below 0. The bandwidth is
    that of the paper, for runs of many steps: with a small one thresholds learn from few pre-activations at a time.
    Rajamanoharan et al. 2024, https://arxiv.org/abs/2407.14435.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PenalizedTrainer.Config):
        """Settings of JumpReLU."""

        sparsity_penalty: float = 1.0
        """Weight of the penalty."""
        sparsity_function: str = "target_l0"
        """The penalty: target_l0, quadratic_l0, l0, tanh, or another of `PENALTIES`."""
        bandwidth: float = 0.001
        """Width of the estimator's kernel, in units of pre-activations."""
        kernel: KernelName = "rectangle"
        """The estimator's kernel."""
        initial_threshold: float = 0.001
        """Where thresholds begin."""
        jumprelu_ste_to_input: bool = False
        """Whether pre-activations get the estimator's gradient too (Anthropic, January 2025 update)."""
        threshold_lr_factor: float = 1.0
        """What the learning rate is multiplied by for thresholds."""
        normalize: str | None = "unit_mean_square"
        """How activations are normalized: the bandwidth and the weight of the penalty are made for unit mean square."""
        beta1: float = 0.0
        """Adam's decay of the mean gradient."""
        max_grad_norm: float | None = 1.0
        """Gradients are scaled down to this common norm."""

    aliases: ClassVar = {
        **PenalizedTrainer.aliases,
        "jumprelu_bandwidth": "bandwidth",
        "jumprelu_init_threshold": "initial_threshold",
    }
    default_lr: ClassVar[float] = 7e-5
    subtracts_b_dec: ClassVar[bool] = False

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    def nonlinearity(self) -> Nonlinearity:
        settings = self.settings
        return JumpReLU(settings.initial_threshold, settings.bandwidth, settings.kernel, settings.jumprelu_ste_to_input)

    def lr_factors(self) -> dict[str, float]:
        return {**super().lr_factors(), "threshold": self.settings.threshold_lr_factor}

    def observe(self, gathered: list[tuple[Batch, Loss]]) -> None:
        super().observe(gathered)
        for part in self.dictionary.coders():
            assert isinstance(part.coder.nonlinearity, JumpReLU)
            part.coder.nonlinearity.threshold.clamp_min_(0)


__all__ = ["JumpReluAutoEncoder", "JumpReluTrainer"]
