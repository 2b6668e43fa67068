"""The wiring of an autoencoder with an affine part."""

from typing import Any

import torch

from dictionary_learning.dictionaries.base import DICTIONARIES
from dictionary_learning.dictionaries.coder import Coder
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity


@DICTIONARIES.register("SkipAutoencoder")
class SkipAutoencoder(Coder):
    """Reconstructs activations from latents and from the activations themselves.

    latents = nonlinearity(W_enc (x - b_dec) + b_enc)
    x_hat = W_dec^T latents + b_dec + W_skip x

    W_skip reads x as it is, before b_dec is subtracted. EleutherAI's sparsify has it, and had its early transcoders so, which is why
    what is reconstructed may also be a module's output, of the same width.

    Args:
        activation_dim: width of the activations.
        dict_size: number of latents.
        nonlinearity: the nonlinearity, or its name and options as `{"name": "top_k", "k": 32}`.
        rank_by_norm: latents are ranked by their value times the norm of what they write.
        generator: draws the initial directions; the global one if there is none.
    """

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        nonlinearity: Nonlinearity | dict[str, Any],
        *,
        rank_by_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__(
            activation_dim, dict_size, nonlinearity, skip=True, rank_by_norm=rank_by_norm, generator=generator
        )

    def options(self) -> dict[str, Any]:
        return {
            "activation_dim": self.activation_dim,
            "dict_size": self.dict_size,
            "nonlinearity": self.nonlinearity_options(),
            "rank_by_norm": self.rank_by_norm,
        }
