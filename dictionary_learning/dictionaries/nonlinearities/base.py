"""What a nonlinearity is."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning.config import Registry, coerce
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents
from dictionary_learning.ops.encoder import Encoder


class Nonlinearity(nn.Module, ABC):
    """Turns pre-activations into latents: the one place where architectures differ."""

    has_bias: ClassVar[bool] = False
    """Whether it adds biases of its own, so that the encoder has none."""
    is_tied: ClassVar[bool] = False
    """Whether the encoder has to be the decoder."""
    in_float32: ClassVar[tuple[str, ...]] = ()
    """Its tensors that stay float32 when a module is cast: what is learnt in small steps would stop moving in bfloat16."""

    def setup(self, dict_size: int) -> None:
        """Makes the tensors that it has for each latent; called once, by the dictionary.

        Raises:
            ConfigError: it cannot serve so many latents.
        """

    @abstractmethod
    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents of each token, whatever the other tokens are."""

    def options(self) -> dict[str, Any]:
        """Returns the arguments that build it again, as plain data."""
        return {}

    def scale_(self, factor: float) -> None:
        """Multiplies what is compared with pre-activations or added to them, when those are multiplied by the factor."""

    def scale_latents_(self, factors: Float[Tensor, "dict_size"]) -> None:
        """The same with a factor for each latent.

        Raises:
            ConfigError: the nonlinearity compares latents with each other, so that factors would change which are kept.
        """
        raise ConfigError(f"{type(self).__name__} compares latents with each other; it cannot have a scale for each.")

    def _apply(self, fn: Any, recurse: bool = True) -> "Nonlinearity":
        kept = {name: getattr(self, name).detach() for name in self.in_float32 if getattr(self, name) is not None}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            tensor = getattr(self, name)
            tensor.data = value.to(tensor.device, torch.float32)
        return self


class SparseSelection(Nonlinearity):
    """Keeps a set number of latents, of each token or of a batch: only those are computed and decoded.

    Args:
        k: how many latents of a token may be non-zero, on average over a batch at least.

    Raises:
        ConfigError: k is not a positive whole number, or exceeds the number of latents.
    """

    is_signed: ClassVar[bool] = False
    """Whether latents may be negative."""
    of_each_token: ClassVar[bool] = True
    """Whether each token keeps k latents, whatever the other tokens are."""

    def __init__(self, k: int):
        super().__init__()
        try:
            self.k = coerce(k, int)
        except TypeError:
            raise ConfigError(f"{type(self).__name__} got k={k!r}; k is a whole number of latents.") from None
        if self.k < 1:
            raise ConfigError(f"{type(self).__name__} cannot keep k={k} latents; k must be at least 1.")

    def setup(self, dict_size: int) -> None:
        if self.k > dict_size:
            raise ConfigError(
                f"{type(self).__name__} cannot keep k={self.k} of dict_size={dict_size} latents; lower k or raise dict_size."
            )

    def options(self) -> dict[str, Any]:
        return {"k": self.k}

    @abstractmethod
    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        """Returns the kept latents.

        Args:
            x: the activations.
            encoder: what makes pre-activations of them.
            k: how many a token keeps, at most as many as there are: as a rule the nonlinearity's own number.
        """


class Elementwise(Nonlinearity):
    """Makes each latent of its own pre-activation alone."""

    @abstractmethod
    def activate(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        """Returns latents of pre-activations.

        Args:
            pre: dense (..., dict_size), or the pre-activations of some pairs of token and latent.
            latents: the latent of each pair, in the shape of `pre`; None for dense ones.
        """

    @abstractmethod
    def support_mask(self, pre: Float[Tensor, "batch dict_size"]) -> Tensor:
        """Returns where a pre-activation has a latent that is not zero, or a gradient: a mask."""

    def margin(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        """Returns how far each pre-activation is above where its latent begins to fire; arguments as for `activate`."""
        return pre

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        return self.activate(pre)

    @staticmethod
    def of(parameter: Tensor, latents: Tensor | None) -> Tensor:
        """Returns the entries of a per-latent tensor that belong to the pre-activations at hand."""
        return parameter if latents is None else parameter[latents]


NONLINEARITIES: Registry[type[Nonlinearity]] = Registry("nonlinearity")
