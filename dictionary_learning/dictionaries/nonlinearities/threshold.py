"""What nonlinearities that keep a set number of latents share: k, and a threshold learnt for inference."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.config import coerce
from dictionary_learning.dictionaries.nonlinearities.base import Nonlinearity
from dictionary_learning.errors import ConfigError


class KeepsSetNumber(Nonlinearity):
    """Keeps k latents for each token, and has a threshold that keeps as many on average.

    A trainer learns the threshold: with it a latent fires where its pre-activation exceeds the threshold, whatever the other
    latents and the other tokens do.

    Args:
        k: how many latents are kept for each token.

    Raises:
        ConfigError: k is not a positive whole number.
    """

    threshold: Tensor

    def __init__(self, k: int):
        super().__init__()
        name = type(self).__name__
        try:
            k = coerce(k, int)
        except TypeError:
            raise ConfigError(f"{name} got k={k!r}; k is a whole number of latents.") from None
        if k < 1:
            raise ConfigError(f"{name} cannot keep k={k} latents; k must be at least 1.")
        self.k = k
        # always float32: a bfloat16 average would stop moving. -1 says that none was learnt yet.
        self.register_buffer("threshold", torch.tensor(-1.0))

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

    def options(self) -> dict[str, Any]:
        return {"k": self.k}

    def scale_(self, factor: float) -> None:
        if float(self.threshold) >= 0:  # the mark for "none yet" is not a threshold
            self.threshold.mul_(factor)

    def _apply(self, fn: Any, recurse: bool = True) -> "KeepsSetNumber":
        threshold = self.threshold
        super()._apply(fn, recurse)
        self.threshold = threshold.to(self.threshold.device)  # moves with the module, but stays float32
        return self
