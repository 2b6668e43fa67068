"""What a dictionary is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from einops import pack, unpack
from jaxtyping import Float, Int
from torch import Tensor, nn

from dictionary_learning.config import Registry
from dictionary_learning.dictionaries.info import DictionaryInfo
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.latents import Latents

D = TypeVar("D", bound="Dictionary")


class Reconstruction(NamedTuple):
    """What a dictionary makes of a batch."""

    outputs: Float[Tensor, "batch output_dim"]
    latents: Latents
    """Sparse where the nonlinearity keeps a fixed number of latents, else dense."""
    pre_activations: Latents | None = None
    """In the form of the latents and where those are; None where only the kept latents were computed."""


class Dictionary(nn.Module, ABC):
    """Latents of activations, and activations from latents.

    Dim 0 of every per-latent tensor is the latent axis: W_enc and W_dec are (dict_size, activation_dim), and row i of
    W_dec is the direction that latent i writes. Where a dictionary reads or writes several sites, their activations stand one
    after another in the last dimension.

    Args:
        activation_dim: width of the activations that it is given.
        dict_size: number of latents.
        output_dim: width of what it reconstructs; by default `activation_dim`.
    """

    info: DictionaryInfo = DictionaryInfo()
    """What is known about the dictionary: sites, model, and the config it was saved with. No part of its state."""

    def __init__(self, activation_dim: int, dict_size: int, output_dim: int | None = None):
        super().__init__()
        output_dim = activation_dim if output_dim is None else output_dim
        sizes = (("activation_dim", activation_dim), ("dict_size", dict_size), ("output_dim", output_dim))
        for name, size in sizes:
            if not isinstance(size, int) or size < 1:
                raise ConfigError(f"{type(self).__name__} got {name}={size!r}; it must be a positive whole number.")
        self.activation_dim = activation_dim
        self.dict_size = dict_size
        self.output_dim = output_dim

    @abstractmethod
    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents, dense."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch output_dim"]:
        """Returns the activations that dense latents stand for."""

    @abstractmethod
    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        """Returns outputs and latents of one batch; no dense latents are made where sparse ones will do."""

    def reconstruct_contexts(
        self, x: Float[Tensor, "n activation_dim"], lengths: Int[Tensor, "contexts"]
    ) -> Reconstruction:
        """Returns outputs and latents of the tokens of several contexts.

        Args:
            x: the tokens, in order, one context after another.
            lengths: how many of them each context has; may be 0.
        """
        return self.reconstruct(x)

    def forward(self, x: Float[Tensor, "*batch activation_dim"], output_features: bool = False) -> Any:
        """Returns x_hat, or (x_hat, latents) with `output_features`."""
        if output_features:
            latents = self.encode(x)
            return self.decode(latents), latents
        flat, lead = pack([x], "* dim")
        (x_hat,) = unpack(self.reconstruct(flat).outputs, lead, "* dim")
        return x_hat

    @abstractmethod
    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        """Turns a dictionary of x / inputs, which makes y / outputs, into one of x that makes y, in place.

        Args:
            inputs: what activations were divided by in training.
            outputs: the same for what is reconstructed; by default `inputs`.
        """

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Returns the arguments that build a dictionary of the same class and shape, as plain data."""

    def expanded(self, dict_size: int, nonlinearity: Any, generator: torch.Generator | None) -> "Dictionary":
        """Returns a trainable copy with more latents, or with another nonlinearity (`expand_or_convert`).

        Raises:
            ConfigError: This kind of dictionary cannot be trained further.
        """
        raise ConfigError(
            f"A {type(self).__name__} cannot be trained further. Of one that normalizes tokens, give the dictionary "
            "inside: its attribute `dictionary`."
        )

    def check_sites(self, widths: Sequence[int], output_widths: Sequence[int]) -> None:
        """Checks that it fits the sites that it is to read and write.

        Raises:
            ConfigError: it has other widths.
        """
        for what, mine, theirs in zip(("reads", "writes"), self.site_widths, (widths, output_widths), strict=True):
            # the activations of several sites may also come one after another, as one
            if sum(mine) != sum(theirs) or (len(mine) > 1 and len(theirs) > 1 and tuple(mine) != tuple(theirs)):
                many = len(mine) > 1 and len(theirs) > 1
                raise ConfigError(
                    f"The {type(self).__name__} {what} activations of width {_widths(mine, many)}; the site has width "
                    f"{_widths(theirs, many)}. Give the model and the site that it was trained on."
                )

    @property
    def site_widths(self) -> tuple[Sequence[int], Sequence[int]]:
        """The widths of the sites that it reads, and of those that it writes."""
        return (self.activation_dim,), (self.output_dim,)

    @property
    def reads_contexts(self) -> bool:
        """Whether what it makes of a token depends on the tokens before it, so that rows must come in order, context by context."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(cls: type[D], path: Any, device: torch.device | str | None = None, **options: Any) -> D:
        """Loads a dictionary of this class, from files of any format.

        Args:
            path: a folder, a file of weights, or a repository of the hub.
            device: the device of the dictionary; the CPU by default.
            options: further arguments of `load_dictionary`, such as `site` or `dtype`.

        Raises:
            CheckpointError: there is no dictionary, or one of another class.
        """
        from dictionary_learning.dictionaries.serialization import load_dictionary

        # where files fit several classes, the class that was called decides
        dictionary = load_dictionary(path, device, expected_class=cls.__name__, **options)
        if not isinstance(dictionary, cls):
            raise CheckpointError(
                f"'{path}' holds a {type(dictionary).__name__}, not a {cls.__name__}. "
                f"Use {type(dictionary).__name__}.from_pretrained, or load_dictionary, which loads any class."
            )
        return dictionary


DICTIONARIES: Registry[type[Dictionary]] = Registry("dictionary class")


def _widths(widths: Sequence[int], many: bool) -> str:
    return ", ".join(map(str, widths)) if many else str(sum(widths))
