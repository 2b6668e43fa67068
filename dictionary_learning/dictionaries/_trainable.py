"""The interface between trainers and dictionaries of any wiring."""

import contextlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.dictionaries._base import Dictionary
from dictionary_learning.dictionaries._initialization import Selecting, selects_alone
from dictionary_learning.latents import Latents, SparseLatents, Support
from dictionary_learning.ops import Encoder

if TYPE_CHECKING:
    from dictionary_learning.dictionaries._coder import Coder

_PACKAGE = __name__.partition(".")[0]
CenterName = Literal["geometric_median", "mean", "zeros"]


class InitConfig(NamedTuple):
    """How a dictionary is initialized from data."""

    center: CenterName = "geometric_median"
    """Initial b_dec."""
    scale_encoder: bool = True
    """Whether the encoder is scaled so that the first reconstruction is best."""
    fit_decoder: bool = False
    """Whether each decoder row is fitted to the outputs, as where they are not the inputs."""
    generator: torch.Generator | None = None
    """Draws pairs of tokens, and directions of latents that do not fire on the sample; None for the
    global generator."""
    data_share: float = 0.0
    """Share of data in decoder rows of which the encoder is the transpose; see `mix_with_data_`."""
    selecting: Selecting = selects_alone
    """How a coder selects where its latents are on several ranks."""


class CoderSlice(NamedTuple):
    """A coder of a dictionary, and its place there."""

    coder: "Coder"
    latents: slice
    """Its latents among those of the dictionary."""
    reads: slice
    """Its inputs among those of the dictionary."""
    writes: slice
    """Its outputs among those of the dictionary."""
    is_whole: bool = False
    """Whether all latents are the coder's."""

    def own(self, latents: Int[Tensor, "n"]) -> Int[Tensor, "m"]:
        """Returns those of the dictionary's latents that are the coder's, by their index there."""
        if self.is_whole:  # a device is not waited for
            return latents
        return latents[(latents >= self.latents.start) & (latents < self.latents.stop)] - self.latents.start


class Trainable(Dictionary):
    """A dictionary of encoders and decoders, of any wiring."""

    encodes_itself: ClassVar[bool] = False
    """Whether the class is a user's, with an `encode` of its own, which then makes all latents."""
    decodes_itself: ClassVar[bool] = False
    """The same of `decode`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.encodes_itself = has_own_method(cls, "encode", "encode_dense")
        cls.decodes_itself = has_own_method(cls, "decode", "decode_dense")

    @abstractmethod
    def encode_sparse(self, x: Float[Tensor, "batch activation_dim"], k: int | None = None) -> SparseLatents:
        """Returns the latents that are kept, as in training, in float32 at least.

        `k` replaces the nonlinearity's own number, as while k is annealed.

        Raises:
            ConfigError: The nonlinearity keeps no set number of latents.
        """

    @abstractmethod
    def encode_latents(self, x: Float[Tensor, "batch activation_dim"]) -> tuple[Latents, Latents | None]:
        """Returns latents as in training, and pre-activations where they were computed."""

    @abstractmethod
    def decode_latents(
        self, latents: Latents, x: Float[Tensor, "batch activation_dim"], *, frozen: bool = False
    ) -> Float[Tensor, "batch output_dim"]:
        """Returns the reconstruction from the latents of x, in float32 at least.

        With `frozen` the decoder is constant, so that gradients reach the latents only.
        """

    def decode_change(
        self, latents: Int[Tensor, "m"], change: Float[Tensor, "n m"], x: Float[Tensor, "n activation_dim"]
    ) -> Float[Tensor, "n output_dim"]:
        support = Support(latents.expand(len(change), -1), self.dict_size)
        changed, nothing = (SparseLatents(values, support) for values in (change, torch.zeros_like(change)))
        return self.decode_latents(changed, x) - self.decode_latents(nothing, x)

    @abstractmethod
    def decode_among(
        self, x: Float[Tensor, "batch activation_dim"], candidates: Int[Tensor, "n"], k: int
    ) -> Float[Tensor, "batch output_dim"]:
        """Returns the outputs of the k largest of some latents, without biases."""

    def keeping(self, candidates: Int[Tensor, "n"]) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which `decode_among` uses what encoding the same x has computed."""
        return contextlib.nullcontext()

    @abstractmethod
    def pointwise(self, method: str, pre: Latents) -> Latents:
        """Applies a method of the nonlinearity to each pre-activation, as `gate` of `Gated`."""

    @abstractmethod
    def decoder_norms(self) -> Float[Tensor, "dict_size"]:
        """Returns the norm of each decoder row; of several sites, the sum of the norms."""

    @abstractmethod
    def initialize_from_data(
        self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"], init: InitConfig
    ) -> None:
        """Sets biases, the encoder's scale and where asked the decoder, before training."""

    @abstractmethod
    def coders(self) -> Iterator[CoderSlice]:
        """Yields the coders of the dictionary."""

    def encoders(self) -> list[Encoder]:
        """Returns the encoders that are applied to the activations as they are, for one product
        with those of other dictionaries."""
        return []


def has_own_method(cls: type, *names: str) -> bool:
    """Returns whether a method of the class was written outside this package."""
    found = [method for name in names if (method := getattr(cls, name, None)) is not None]
    return any(str(getattr(method, "__module__", "")).partition(".")[0] != _PACKAGE for method in found)
