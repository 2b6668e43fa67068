"""A rectifier that saturates."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES, Elementwise


@NONLINEARITIES.register("tanh_relu")
class TanhReLU(Elementwise):
    """latents = limit * tanh(relu(pre) / limit), with a limit for each latent that begins at 1.

    Early dictionaries of SAELens have it, with limits of 1. A limit moves with the scale of the activations, and is not learnt.
    """

    limit: Tensor

    def setup(self, dict_size: int) -> None:
        self.register_buffer("limit", torch.ones(dict_size))

    def activate(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        limit = self.of(self.limit, latents)
        return limit * torch.tanh(pre.relu() / limit)

    def support_mask(self, pre: Float[Tensor, "batch dict_size"]) -> Tensor:
        return pre > 0

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.limit.mul_(factor)

    @torch.no_grad()
    def scale_latents_(self, factors: Float[Tensor, "dict_size"]) -> None:
        self.limit.mul_(factors)
