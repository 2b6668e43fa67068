"""What a nonlinearity is."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning.config import Registry
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents


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

    def encode_sparse(
        self,
        x: Float[Tensor, "batch dim"],
        W_enc: Float[Tensor, "dict_size dim"],
        b_enc: Float[Tensor, "dict_size"],
        center: Float[Tensor, "dim"],
        k: int | None,
    ) -> SparseLatents:
        """Returns the kept latents of W_enc (x - center) + b_enc, where a set number is kept.

        Args:
            x: the activations.
            W_enc: the encoder.
            b_enc: its bias.
            center: what is subtracted from the activations.
            k: how many a token keeps, instead of the nonlinearity's own number.

        Raises:
            ConfigError: the nonlinearity keeps no set number of latents.
        """
        raise ConfigError(f"{type(self).__name__} does not keep a fixed number of latents; use encode.")


NONLINEARITIES: Registry[type[Nonlinearity]] = Registry("nonlinearity")
