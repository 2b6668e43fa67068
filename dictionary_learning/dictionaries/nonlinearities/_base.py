"""The base classes of nonlinearities: `Elementwise`, `SparseSelection` and `RuleSelection`.

`@NONLINEARITIES.register("mine")` makes a subclass available by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dictionary_learning._coercion import coerce
from dictionary_learning.config import Registry
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents
from dictionary_learning.ops import Encoder


class ThresholdForm(NamedTuple):
    """latents = z * 1[z > threshold], z = scale * pre + bias.

    Tensors are float32, and scalars or (dict_size,).
    """

    scale: Tensor | float = 1.0
    bias: Tensor | float = 0.0
    threshold: Tensor | None = None
    """None if there is none, or none was learned."""


class Nonlinearity(nn.Module, ABC):
    """Maps pre-activations to latents of the same dtype: the place where architectures differ."""

    has_bias: ClassVar[bool] = False
    """Whether it adds biases of its own, so that the encoder has none."""
    is_tied: ClassVar[bool] = False
    """Whether the encoder must be the decoder."""
    is_masked_relu: ClassVar[bool] = False
    """Whether each latent is relu(pre) or 0, so that `calibrate` can replace it by thresholds."""
    of_each_token: ClassVar[bool] = True
    """Whether a token's latents in training are independent of the other tokens."""
    in_float32: ClassVar[tuple[str, ...]] = ()
    """Tensors that stay float32 when the module is cast: bfloat16 would lose small updates."""

    def setup(self, dict_size: int) -> None:
        """Creates the per-latent tensors; called once, by the dictionary.

        Raises:
            ConfigError: It cannot be used with this number of latents.
        """

    @abstractmethod
    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents of each token, independent of the other tokens."""

    def options(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain data."""
        return {}

    def biases(self) -> list[nn.Parameter]:
        """Returns the biases that it adds to pre-activations, each (dict_size,)."""
        return []

    def threshold_form(self) -> ThresholdForm:
        """Returns the latents as pre-activations above a threshold, if they have this form."""
        return ThresholdForm()

    def from_threshold_form(self, bias: Tensor, threshold: Tensor | None) -> dict[str, Tensor | None]:
        """Returns values of a new one's tensors with which latents are z * 1[z > threshold].

        z is pre + bias; where `has_bias` is False, bias is b_enc. Bias and threshold are
        (n_latents,). None is a value that needs the threshold.
        """
        return {}

    def scale_(self, factor: float) -> None:
        """Scales its tensors so that scaled pre-activations give scaled latents."""

    def scale_latents_(self, factors: Float[Tensor, "dict_size"]) -> None:
        """The same with a positive factor for each latent.

        Raises:
            ConfigError: Latents are compared with each other: factors would change which are kept.
        """
        raise ConfigError(f"{type(self).__name__} compares latents with each other; it cannot have a scale for each.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Nonlinearity":
        kept = {name: getattr(self, name).detach() for name in self.in_float32 if getattr(self, name) is not None}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            tensor = getattr(self, name)
            tensor.data = value.to(tensor.device, torch.float32)
        return self


class SparseSelection(Nonlinearity):
    """Keeps a set number of latents, of each token or of a batch; only those are decoded.

    Args:
        k: Latents of a token that may be non-zero; with a batch's together, on average.

    Raises:
        ConfigError: k is not a positive whole number, or exceeds the number of latents.
    """

    is_signed: ClassVar[bool] = False
    """Whether latents may be negative."""

    def __init__(self, k: int):
        super().__init__()
        name = type(self).__name__
        try:
            self.k: int = coerce(k, int)
        except TypeError:
            hint = "" if self.of_each_token else " SAELens accepts fractions, as an average over tokens; round k here."
            raise ConfigError(f"{name} got k={k!r}; k is a whole number of latents.{hint}") from None
        if self.k < 1:
            raise ConfigError(f"{name} cannot keep k={k} latents; k must be at least 1.")

    def setup(self, dict_size: int) -> None:
        if self.k > dict_size:
            raise ConfigError(
                f"{type(self).__name__} cannot keep k={self.k} of dict_size={dict_size} latents; "
                "lower k or raise dict_size."
            )

    def options(self) -> dict[str, Any]:
        return {"k": self.k}

    @abstractmethod
    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        """Returns the kept latents, in float32 at least, computed by `encoder.backend`.

        k is at most dict_size, and usually the nonlinearity's own.
        """


class RuleSelection(SparseSelection):
    """Keeps k latents of each token, chosen by a function of the token's pre-activations."""

    @abstractmethod
    def choose(self, pre: Float[Tensor, "*batch dict_size"], k: int) -> Int[Tensor, "*batch k"]:
        """Returns the indices of the k latents to keep, in any order."""

    def value(self, pre: Tensor) -> Tensor:
        """Returns the latents for kept pre-activations."""
        return pre

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        indices = self.choose(pre, self.k)
        return torch.zeros_like(pre).scatter(-1, indices, self.value(pre.gather(-1, indices)))

    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        kept = encoder.backend.encode_where(x, encoder, lambda pre: self.choose(pre, k))
        assert isinstance(kept, SparseLatents)
        return SparseLatents(self.value(kept.values), kept.support)


class Elementwise(Nonlinearity):
    """Computes each latent from its own pre-activation alone."""

    @abstractmethod
    def activate(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        """Returns the latents of pre-activations.

        Args:
            pre: Dense (..., dict_size), or the pre-activations of some (token, latent) pairs.
            latents: The latent of each pair, in the shape of `pre`; None if `pre` is dense.
        """

    @abstractmethod
    def support_mask(self, pre: Float[Tensor, "batch dict_size"]) -> Bool[Tensor, "batch dict_size"]:
        """Returns where a pre-activation has a non-zero latent or a gradient."""

    def margin(self, pre: Tensor, latents: Tensor | None = None) -> Tensor:
        """Returns how far each pre-activation is above the value at which its latent fires."""
        return pre

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        return self.activate(pre)

    @staticmethod
    def of(parameter: Float[Tensor, "dict_size"], latents: Tensor | None) -> Tensor:
        """Returns a per-latent tensor in a shape that broadcasts with `pre` (see `activate`)."""
        return parameter if latents is None else parameter[latents]


NONLINEARITIES: Registry[type[Nonlinearity]] = Registry("nonlinearity")
