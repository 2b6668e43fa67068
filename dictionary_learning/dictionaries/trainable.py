"""Dictionaries as trainers see them, whatever their wiring."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.dictionaries.base import Dictionary
from dictionary_learning.latents import Latents
from dictionary_learning.ops.encoder import Encoder

if TYPE_CHECKING:
    from dictionary_learning.dictionaries.coder import Coder

CenterName = Literal["geometric_median", "mean", "zeros"]


class InitConfig(NamedTuple):
    """Where training begins, as far as that depends on data."""

    center: CenterName = "geometric_median"
    """Where b_dec begins."""
    scale_encoder: bool = True
    """Whether the encoder begins at the scale at which the first reconstruction is best."""
    fit_decoder: bool = False
    """Whether the decoder's rows begin as what each latent, by itself, says of the output: for outputs that are not inputs."""
    generator: torch.Generator | None = None
    """Draws the directions of latents that are silent on the sample; the global one if there is none."""


class CoderSlice(NamedTuple):
    """A coder in a dictionary, and its place there."""

    coder: "Coder"
    latents: slice
    reads: slice
    writes: slice

    def own(self, latents: Int[Tensor, "n"]) -> Int[Tensor, "m"]:
        """Returns those of the dictionary's latents that are the coder's, by their numbers there."""
        return latents[(latents >= self.latents.start) & (latents < self.latents.stop)] - self.latents.start


class Trainable(Dictionary):
    """A dictionary as trainers see it, whatever its wiring."""

    @abstractmethod
    def encode_latents(
        self, x: Float[Tensor, "batch activation_dim"], k: int | None = None
    ) -> tuple[Latents, Latents | None]:
        """Returns latents as in training, with gradients, and the pre-activations where all that matter were computed.

        Args:
            x: the activations.
            k: how many latents a token keeps, where a set number is kept, instead of that number.
        """

    @abstractmethod
    def decode_latents(
        self, latents: Latents, x: Float[Tensor, "batch activation_dim"], *, frozen: bool = False
    ) -> Float[Tensor, "batch output_dim"]:
        """Returns what latents in either form stand for, in float32 at least.

        Args:
            latents: the latents.
            x: the activations that they are of.
            frozen: whether the decoder is held constant, so that gradients reach the latents only.
        """

    @abstractmethod
    def decode_among(
        self, x: Float[Tensor, "batch activation_dim"], candidates: Int[Tensor, "n"], k: int
    ) -> Float[Tensor, "batch output_dim"]:
        """Returns what the k largest of some latents decode to, without biases, which get no gradient from here."""

    @abstractmethod
    def pointwise(self, method: str, pre: Latents) -> Latents:
        """Returns what a method of the nonlinearity makes of each pre-activation, as `gate` of `Gated` or `fires` of `JumpReLU`."""

    @abstractmethod
    def decoder_norms(self) -> Float[Tensor, "dict_size"]:
        """Returns the norm of what each latent writes; of several sites, the sum of the norms."""

    @abstractmethod
    def start(self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"], start: InitConfig) -> None:
        """Sets what depends on data, before training: biases and the encoder's scale."""

    @abstractmethod
    def coders(self) -> Iterator[CoderSlice]:
        """Yields the coders that it is made of."""

    def encoders(self) -> list[Encoder]:
        """Returns the encoders that are applied to the activations as they are, for one product with other dictionaries'."""
        return []
