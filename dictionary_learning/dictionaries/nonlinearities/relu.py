"""The rectifier."""

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES, Elementwise


@NONLINEARITIES.register("relu")
class ReLU(Elementwise):
    """latents = max(pre, 0)."""

    def activate(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        return pre.relu()

    def support_mask(self, pre: Float[Tensor, "batch dict_size"]) -> Tensor:
        return pre > 0

    def scale_latents_(self, factors: Float[Tensor, "dict_size"]) -> None:
        pass
