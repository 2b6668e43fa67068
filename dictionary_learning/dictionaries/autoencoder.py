"""The wiring from a site to itself."""

from typing import Any, NamedTuple

import torch
from einops import pack, unpack
from jaxtyping import Float
from torch import Tensor, nn

from dictionary_learning import ops
from dictionary_learning.dictionaries.base import DICTIONARIES, Dictionary, Reconstruction
from dictionary_learning.dictionaries.initialization import unit_rows
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES, KeepsSetNumber, Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, to_dense


class LinearView(NamedTuple):
    """A weight and bias under the names and in the orientation of `torch.nn.Linear`; views, not copies."""

    weight: Tensor
    bias: Tensor


@DICTIONARIES.register("SparseAutoencoder")
class SparseAutoencoder(Dictionary):
    """Reconstructs the activations that it is given.

    latents = nonlinearity(W_enc (x - b_dec) + b_enc)
    x_hat = W_dec^T latents + b_dec

    The decoder's rows begin with unit norm and random directions, and the encoder as the decoder's transpose.

    Args:
        activation_dim: width of the activations.
        dict_size: number of latents.
        nonlinearity: the nonlinearity, or its name and options as `{"name": "top_k", "k": 32}`.
        generator: draws the initial directions; the global one if there is none.

    Raises:
        ConfigError: the nonlinearity would keep more latents than there are.
    """

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        nonlinearity: Nonlinearity | dict[str, Any],
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__(activation_dim, dict_size)
        if isinstance(nonlinearity, dict):
            options = dict(nonlinearity)
            nonlinearity = NONLINEARITIES[options.pop("name", "")](**options)
        k = nonlinearity.k if isinstance(nonlinearity, KeepsSetNumber) else 0
        if k > dict_size:
            name = type(nonlinearity).__name__
            raise ConfigError(f"{name} cannot keep k={k} of dict_size={dict_size} latents; lower k or raise dict_size.")
        self.nonlinearity = nonlinearity
        self.W_dec = nn.Parameter(unit_rows(dict_size, activation_dim, generator))
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(dict_size))
        self.b_dec = nn.Parameter(torch.zeros(activation_dim))

    def pre_activations(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns what the nonlinearity is given."""
        return nn.functional.linear(self._checked(x).to(self.dtype) - self.b_dec, self.W_enc, self.b_enc)

    def encode(self, x: Float[Tensor, "*batch activation_dim"]) -> Float[Tensor, "*batch dict_size"]:
        k = self.nonlinearity.fixed_k
        if k is None:
            return self.nonlinearity(self.pre_activations(x))
        flat, lead = pack([x], "* dim")
        (latents,) = unpack(to_dense(self.encode_sparse(flat, k)), lead, "* dict_size")
        return latents

    def encode_sparse(self, x: Float[Tensor, "batch activation_dim"], k: int | None = None) -> SparseLatents:
        """Returns the kept latents only, in float32 at least.

        Args:
            x: the activations.
            k: how many a token keeps instead of the nonlinearity's own number, as while k is annealed.

        Raises:
            ConfigError: the nonlinearity keeps no set number of latents.
        """
        return self.nonlinearity.encode_sparse(self._checked(x), self.W_enc, self.b_enc, self.b_dec, k)

    def decode(self, latents: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch activation_dim"]:
        return latents.to(self.W_dec.dtype) @ self.W_dec + self.b_dec

    def decode_sparse(self, latents: SparseLatents) -> Float[Tensor, "batch activation_dim"]:
        """Returns the activations that sparse latents stand for, in float32 at least."""
        return ops.sparse_decode(latents, self.W_dec) + self.b_dec

    def reconstruct(self, x: Float[Tensor, "batch activation_dim"]) -> Reconstruction:
        if self.nonlinearity.fixed_k is None:
            dense = self.encode(x)
            return Reconstruction(self.decode(dense), dense)
        latents = self.encode_sparse(x)
        return Reconstruction(self.decode_sparse(latents), latents)

    @torch.no_grad()
    def scale_(self, inputs: float, outputs: float | None = None) -> None:
        # relu and top-k commute with positive factors, so latents may carry the scale and the directions need not
        if outputs is not None and outputs != inputs:
            raise ConfigError(f"An autoencoder has one scale; got inputs={inputs} and outputs={outputs}.")
        self.b_enc.mul_(inputs)
        self.b_dec.mul_(inputs)
        self.nonlinearity.scale_(inputs)

    def scale_biases(self, scale: float) -> None:
        """The same as `scale_(scale)`, by its older name."""
        self.scale_(scale)

    def options(self) -> dict[str, Any]:
        name = NONLINEARITIES.name_of(type(self.nonlinearity))
        nonlinearity = {"name": name, **self.nonlinearity.options()}
        return {"activation_dim": self.activation_dim, "dict_size": self.dict_size, "nonlinearity": nonlinearity}

    @property
    def encoder(self) -> LinearView:
        """`encoder.weight` (dict_size, activation_dim) and `encoder.bias`, as in `torch.nn.Linear`."""
        return LinearView(self.W_enc, self.b_enc)

    @property
    def decoder(self) -> LinearView:
        """`decoder.weight` (activation_dim, dict_size) and `decoder.bias`, as in `torch.nn.Linear`."""
        return LinearView(self.W_dec.T, self.b_dec)

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.activation_dim:
            raise ConfigError(
                f"Got activations of width {x.shape[-1]}; this dictionary takes width {self.activation_dim}. "
                "Check that they come from the site that it was trained on."
            )
        return x.to(torch.promote_types(self.dtype, torch.float32))
