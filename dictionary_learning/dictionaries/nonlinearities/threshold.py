"""What nonlinearities that keep a set number of latents share: k, and a threshold learnt for inference."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.config import coerce
from dictionary_learning.dictionaries.nonlinearities.base import Nonlinearity, Selects
from dictionary_learning.errors import ConfigError


class KeepsSetNumber(Selects):
    """Keeps k latents for each token, and has a threshold that keeps as many on average.

    A trainer learns the threshold: with it a latent fires where its pre-activation exceeds the threshold, whatever the other
    latents and the other tokens do.

    Args:
        k: how many latents are kept for each token.

    Raises:
        ConfigError: k is not a positive whole number.
    """

    threshold: Tensor

    in_float32 = ("threshold",)

    def __init__(self, k: int):
        super().__init__()
        self.k = checked_k(self, k)
        self.register_buffer("threshold", torch.tensor(-1.0))  # -1 says that none was learnt yet

    def setup(self, dict_size: int) -> None:
        checked_size(self, self.k, dict_size)

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


def checked_k(nonlinearity: Nonlinearity, k: int) -> int:
    """Returns k as a whole number.

    Raises:
        ConfigError: it is none, or not positive.
    """
    name = type(nonlinearity).__name__
    try:
        k = coerce(k, int)
    except TypeError:
        raise ConfigError(f"{name} got k={k!r}; k is a whole number of latents.") from None
    if k < 1:
        raise ConfigError(f"{name} cannot keep k={k} latents; k must be at least 1.")
    return k


def checked_size(nonlinearity: Nonlinearity, k: int, dict_size: int) -> None:
    """Checks that there are k latents to keep.

    Raises:
        ConfigError: there are fewer.
    """
    if k > dict_size:
        name = type(nonlinearity).__name__
        raise ConfigError(f"{name} cannot keep k={k} of dict_size={dict_size} latents; lower k or raise dict_size.")
