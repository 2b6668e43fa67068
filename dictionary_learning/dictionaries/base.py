"""What a dictionary is."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, TypeVar

import torch
from einops import pack, unpack
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning.config import Registry
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents

D = TypeVar("D", bound="Dictionary")


class Reconstruction(NamedTuple):
    """What a dictionary makes of a batch."""

    outputs: Float[Tensor, "batch activation_dim"]
    latents: Latents
    """Sparse where the nonlinearity keeps a fixed number of latents, else dense."""


class Dictionary(nn.Module, ABC):
    """Latents of activations, and activations from latents.

    Dim 0 of every per-latent tensor is the latent axis: W_enc and W_dec are (dict_size, activation_dim), and row i of
    W_dec is the direction that latent i writes.

    Args:
        activation_dim: width of the activations.
        dict_size: number of latents.
    """

    def __init__(self, activation_dim: int, dict_size: int):
        super().__init__()
        for name, size in (("activation_dim", activation_dim), ("dict_size", dict_size)):
            if not isinstance(size, int) or size < 1:
                raise ConfigError(f"{type(self).__name__} got {name}={size!r}; it must be a positive whole number.")
        self.activation_dim = activation_dim
        self.dict_size = dict_size

    @abstractmethod
    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents, dense."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch activation_dim"]:
        """Returns the activations that dense latents stand for."""

    @abstractmethod
    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        """Returns outputs and latents of one batch; no dense latents are made where sparse ones will do."""

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
        """Turns a dictionary of x / inputs into one of x, in place, and latents are multiplied by `outputs`.

        Args:
            inputs: what activations were divided by in training.
            outputs: the same for what is reconstructed; by default `inputs`.
        """

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Returns the arguments that build a dictionary of the same class and shape, as plain data."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(cls: type[D], path: Any, device: torch.device | str | None = None) -> D:
        """Loads a dictionary of this class from the folder that it was saved in.

        Raises:
            CheckpointError: the folder holds no dictionary, or one of another class.
        """
        from dictionary_learning.dictionaries.serialization import load_dictionary
        from dictionary_learning.errors import CheckpointError

        dictionary, _ = load_dictionary(path, device)
        if not isinstance(dictionary, cls):
            raise CheckpointError(
                f"'{path}' holds a {type(dictionary).__name__}, not a {cls.__name__}. "
                f"Use {type(dictionary).__name__}.from_pretrained, or load_dictionary, which takes any."
            )
        return dictionary


DICTIONARIES: Registry[type[Dictionary]] = Registry("dictionary class")
