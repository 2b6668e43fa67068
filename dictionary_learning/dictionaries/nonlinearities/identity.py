"""No nonlinearity."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES, Elementwise


@NONLINEARITIES.register("identity")
class Identity(Elementwise):
    """latents = pre: dense and of either sign, as in a linear autoencoder."""

    def activate(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        return pre

    def support_mask(self, pre: Float[Tensor, "batch dict_size"]) -> Tensor:
        return torch.ones_like(pre, dtype=torch.bool)

    def scale_latents_(self, factors: Float[Tensor, "dict_size"]) -> None:
        pass
