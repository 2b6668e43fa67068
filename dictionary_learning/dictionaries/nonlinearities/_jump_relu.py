"""A threshold for each latent."""

from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dictionary_learning.dictionaries.nonlinearities._base import NONLINEARITIES, Elementwise, ThresholdForm
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops._straight_through import REACH, KernelName, jump, step


@NONLINEARITIES.register("jump_relu")
class JumpReLU(Elementwise):
    """latents = pre * 1[pre > threshold], with a threshold for each latent.

    Thresholds are learned by a straight-through estimator (`ops/_straight_through.py`), directly
    and not by their logarithms, and stay float32: small updates would be lost in bfloat16.
    Rajamanoharan et al. 2024, https://arxiv.org/abs/2407.14435; `gradient_to_input` is Anthropic's
    variant (January 2025 update).

    Args:
        initial_threshold: Initial value of all thresholds.
        bandwidth: Width of the estimator's kernel, in units of pre-activations; 0.001 is meant for
            activations of unit mean square.
        gradient_to_input: Whether pre-activations get the estimator's gradient too.

    Raises:
        ConfigError: An argument cannot be used.
    """

    is_masked_relu = True
    in_float32 = ("threshold",)
    threshold: nn.Parameter

    def __init__(
        self,
        initial_threshold: float = 0.001,
        bandwidth: float = 0.001,
        kernel: KernelName = "rectangle",
        gradient_to_input: bool = False,
    ):
        super().__init__()
        if not (initial_threshold >= 0 and bandwidth > 0):
            raise ConfigError(
                f"JumpReLU got initial_threshold={initial_threshold} and bandwidth={bandwidth}; "
                "the first must not be negative, the second must be positive."
            )
        if kernel not in get_args(KernelName):
            raise ConfigError(f"JumpReLU got kernel={kernel!r}; choose one of {', '.join(get_args(KernelName))}.")
        self.initial_threshold, self.bandwidth = float(initial_threshold), float(bandwidth)
        self.kernel: KernelName = kernel
        self.gradient_to_input = gradient_to_input

    def setup(self, dict_size: int) -> None:
        self.threshold = nn.Parameter(torch.full((dict_size,), self.initial_threshold))

    def activate(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        threshold = self.of(self.threshold, latents)
        return jump(pre, threshold, self.bandwidth, self.kernel, self.gradient_to_input)

    def fires(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        """Returns 1 where a latent fires, else 0, with the estimator's gradient: its sum is L0."""
        threshold = self.of(self.threshold, latents)
        return step(pre, threshold, self.bandwidth, self.kernel, self.gradient_to_input)

    def margin(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        return pre - self.of(self.threshold, latents)

    def support_mask(self, pre: Float[Tensor, "batch dict_size"]) -> Bool[Tensor, "batch dict_size"]:
        # just below the threshold a latent is zero, but the threshold gets a gradient from there
        return pre > self.threshold.detach() - REACH[self.kernel] * self.bandwidth

    def threshold_form(self) -> ThresholdForm:
        return ThresholdForm(threshold=self.threshold.float())

    def from_threshold_form(self, bias: Tensor, threshold: Tensor | None) -> dict[str, Tensor | None]:
        return {"threshold": threshold}

    def options(self) -> dict[str, Any]:
        names = ("initial_threshold", "bandwidth", "kernel", "gradient_to_input")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.threshold.mul_(factor)
        self.bandwidth *= factor

    @torch.no_grad()
    def scale_latents_(self, factors: Float[Tensor, "dict_size"]) -> None:
        self.threshold.mul_(factors)
