"""What a nonlinearity is."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning.config import Registry


class Nonlinearity(nn.Module, ABC):
    """Turns pre-activations into latents: the one place where architectures differ."""

    fixed_k: int | None = None
    """How many latents a token keeps, where that is fixed: then only those are computed and decoded."""

    @abstractmethod
    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents."""

    def options(self) -> dict[str, Any]:
        """Returns the arguments that build it again, as plain data."""
        return {}

    def scale_(self, factor: float) -> None:
        """Multiplies what is compared with pre-activations, when those are multiplied by the factor."""


NONLINEARITIES: Registry[type[Nonlinearity]] = Registry("nonlinearity")
