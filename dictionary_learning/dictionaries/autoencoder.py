"""The wiring from a site to itself."""

from typing import Any

import torch

from dictionary_learning.dictionaries.base import DICTIONARIES
from dictionary_learning.dictionaries.coder import Coder
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity


@DICTIONARIES.register("SparseAutoencoder")
class SparseAutoencoder(Coder):
    """Reconstructs the activations that it is given.

    latents = nonlinearity(W_enc (x - b_dec) + b_enc)
    x_hat = W_dec^T latents + b_dec

    The decoder's rows begin with unit norm and random directions, and the encoder as the decoder's transpose.

    Args:
        activation_dim: width of the activations.
        dict_size: number of latents.
        nonlinearity: the nonlinearity, or its name and options as `{"name": "top_k", "k": 32}`.
        apply_b_dec_to_input: whether b_dec is subtracted before encoding.
        rank_by_norm: latents are ranked by their value times the norm of what they write.
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
        apply_b_dec_to_input: bool = True,
        rank_by_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__(
            activation_dim,
            dict_size,
            nonlinearity,
            centered=apply_b_dec_to_input,
            rank_by_norm=rank_by_norm,
            generator=generator,
        )

    @property
    def apply_b_dec_to_input(self) -> bool:
        """Whether b_dec is subtracted before encoding."""
        return self.centered

    def scale_biases(self, scale: float) -> None:
        """The same as `scale_(scale)`, by its older name."""
        self.scale_(scale)

    def options(self) -> dict[str, Any]:
        return {
            "activation_dim": self.activation_dim,
            "dict_size": self.dict_size,
            "nonlinearity": self.nonlinearity_options(),
            "apply_b_dec_to_input": self.centered,
            "rank_by_norm": self.rank_by_norm,
        }
