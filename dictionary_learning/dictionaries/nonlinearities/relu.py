"""The rectifier."""

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES, Nonlinearity


@NONLINEARITIES.register("relu")
class ReLU(Nonlinearity):
    """latents = max(pre, 0)."""

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        return pre.relu()
