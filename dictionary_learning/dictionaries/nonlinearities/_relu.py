"""Nonlinearities without thresholds: a rectifier, the identity, a saturating rectifier."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities._base import NONLINEARITIES, Elementwise, ThresholdForm


@NONLINEARITIES.register("relu")
class ReLU(Elementwise):
    """latents = max(pre, 0)."""

    is_masked_relu = True

    def activate(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        return pre.relu()

    def support_mask(self, pre: Float[Tensor, "batch dict_size"]) -> Bool[Tensor, "batch dict_size"]:
        return pre > 0

    def threshold_form(self) -> ThresholdForm:
        return ThresholdForm(threshold=torch.zeros(()))

    def scale_latents_(self, factors: Float[Tensor, "dict_size"]) -> None:
        pass  # no tensor has a scale


@NONLINEARITIES.register("identity")
class Identity(Elementwise):
    """latents = pre: dense and of either sign, as in a linear autoencoder."""

    def activate(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        return pre

    def support_mask(self, pre: Float[Tensor, "batch dict_size"]) -> Bool[Tensor, "batch dict_size"]:
        return torch.ones_like(pre, dtype=torch.bool)

    def scale_latents_(self, factors: Float[Tensor, "dict_size"]) -> None:
        pass  # no tensor has a scale


@NONLINEARITIES.register("tanh_relu")
class TanhReLU(Elementwise):
    """latents = limit * tanh(relu(pre) / limit), with a fixed limit for each latent, initially 1.

    Early dictionaries of SAELens have it, with limits of 1. Limits follow the scale of the
    activations.
    """

    limit: Tensor

    def setup(self, dict_size: int) -> None:
        self.register_buffer("limit", torch.ones(dict_size))

    def activate(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        limit = self.of(self.limit, latents)
        return limit * torch.tanh(pre.relu() / limit)

    def support_mask(self, pre: Float[Tensor, "batch dict_size"]) -> Bool[Tensor, "batch dict_size"]:
        return pre > 0

    @torch.no_grad()
    def scale_latents_(self, factors: Float[Tensor, "dict_size"] | float) -> None:
        self.limit.mul_(factors)

    def scale_(self, factor: float) -> None:
        self.scale_latents_(factor)
