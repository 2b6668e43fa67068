"""JumpReLU: a learned threshold for each latent."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dictionary_learning._lazy import lazy_names
from dictionary_learning.config import auto, setting
from dictionary_learning.dictionaries import JumpReluAutoEncoder
from dictionary_learning.dictionaries.nonlinearities import JumpReLU, Nonlinearity
from dictionary_learning.ops._straight_through import KernelName
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss, StepPart
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._penalties import PenaltyConfig, penalized_loss, scheduled_coefficient
from dictionary_learning.trainers._sae_trainer import SAETrainer

_LR, _LR_STEPS = 1e-3, 1500
"""The rate that was best in runs of that length, of those tried."""
_LR_LEAST = 7e-5
"""Rajamanoharan et al. 2024, for runs of hundreds of thousands of steps."""


def _rate(c: Any) -> float:
    return max(_LR_LEAST, _LR * min(1.0, (_LR_STEPS / c.steps) ** 0.5))


@TRAINERS.register("jump_relu")
class JumpReluTrainer(SAETrainer):
    """Trains a dictionary with a threshold for each latent, and a penalty on the number that fire.

    loss = |y - y_hat|^2 + sparsity_penalty * penalty,  by default the penalty (L0 / target_l0 -
    1)^2

    The gradient of L0 is taken on pre-activations, on both sides of the threshold. Thresholds do
    not fall below 0. The bandwidth is that of the paper, for runs of many steps: with a small one,
    thresholds learn from few pre-activations at a time.
    Rajamanoharan et al. 2024, https://arxiv.org/abs/2407.14435.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PenaltyConfig):
        """Settings of JumpReLU."""

        subtracts_b_dec: ClassVar[bool] = False

        lr: float = auto(_rate, at_least=0)
        """Learning rate; by default 1e-3 up to 1,500 steps, then falling with the square root of
        the steps to 7e-5, the paper's, at 306,000 (docs/defaults.md)."""
        sparsity_penalty: float = setting(1.0, at_least=0)
        """Weight of the penalty."""
        sparsity_function: str = "target_l0"
        """The penalty: target_l0, quadratic_l0, l0, tanh, or another of `PENALTIES`."""
        bandwidth: float = setting(0.001, above=0)
        """Width of the estimator's kernel, in units of pre-activations."""
        kernel: KernelName = "rectangle"
        """The estimator's kernel."""
        initial_threshold: float = setting(0.001, at_least=0)
        """Initial value of the thresholds."""
        jumprelu_ste_to_input: bool = False
        """Whether pre-activations get the estimator's gradient too (Anthropic, January 2025)."""
        threshold_lr_factor: float = setting(1.0, at_least=0)
        """Factor of the learning rate for thresholds."""
        normalize: str | None = "unit_mean_square"
        """Normalization of the activations. The bandwidth and the weight of the penalty are made
        for unit mean square."""
        beta1: float = setting(0.0, at_least=0, below=1)
        max_grad_norm: float | None = setting(1.0, above=0)

    settings: Config
    spreads_latents = True
    coefficient = component(scheduled_coefficient)

    def nonlinearity(self) -> Nonlinearity:
        settings = self.settings
        return JumpReLU(settings.initial_threshold, settings.bandwidth, settings.kernel, settings.jumprelu_ste_to_input)

    def objective(self, batch: Batch) -> Loss:
        return penalized_loss(self, self.settings, batch, self.settings.penalty(), self.coefficient.now)

    def after_step(self, parts: Sequence[StepPart]) -> None:
        for part in self.dictionary.coders():
            nonlinearity = part.coder.nonlinearity
            assert isinstance(nonlinearity, JumpReLU)
            nonlinearity.threshold.clamp_min_(0)

    def lr_factors(self) -> Mapping[str, float]:
        return {**super().lr_factors(), "threshold": self.settings.threshold_lr_factor}


__all__ = ["JumpReluAutoEncoder", "JumpReluTrainer"]

_OLD = ("JumpReLUFunction", "RectangleFunction", "StepFunction")
# `compat` imports this package, so its names are looked up when they are used
__getattr__, __dir__ = lazy_names(__name__, dict.fromkeys(_OLD, "dictionary_learning.compat._functions"))
