"""What nonlinearities that keep a set number of latents share: k, and a threshold learnt for inference."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities.base import SparseSelection
from dictionary_learning.errors import ConfigError


class ThresholdedTopK(SparseSelection):
    """Keeps k latents for each token, and has a threshold that keeps as many on average.

    A trainer learns the threshold: with it a latent fires where its pre-activation exceeds the threshold, whatever the other
    latents and the other tokens do.

    Args:
        k: how many latents are kept for each token.
    """

    threshold: Tensor

    in_float32 = ("threshold",)

    def __init__(self, k: int):
        super().__init__(k)
        self.register_buffer("threshold", torch.tensor(-1.0))  # -1 says that none was learnt yet

    def above_threshold(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents by the learnt threshold: they do not depend on each other, and k holds on average.

        Raises:
            ConfigError: no threshold was learnt.
        """
        if float(self.threshold) < 0:
            raise ConfigError(
                f"This {type(self).__name__} has no learnt threshold (it is -1). Train it for a step, "
                "or encode without use_threshold."
            )
        return pre.relu() * (pre > self.threshold)

    def scale_(self, factor: float) -> None:
        if float(self.threshold) >= 0:  # the mark for "none yet" is not a threshold
            self.threshold.mul_(factor)
