"""The wiring from one site to another."""

from typing import Any

import torch

from dictionary_learning.dictionaries.base import DICTIONARIES
from dictionary_learning.dictionaries.coder import Coder
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity


@DICTIONARIES.register("Transcoder")
class Transcoder(Coder):
    """Predicts what a module returns from what it is given.

    latents = nonlinearity(W_enc x + b_enc)
    y_hat = W_dec^T latents + b_dec [+ W_skip x]

    Dunefsky et al. 2024, https://arxiv.org/abs/2406.11944; with the affine skip Paulo et al. 2025, https://arxiv.org/abs/2501.18823.

    Args:
        activation_dim: width of what it reads.
        dict_size: number of latents.
        nonlinearity: the nonlinearity, or its name and options as `{"name": "top_k", "k": 32}`.
        output_dim: width of what it predicts; by default that of what it reads.
        skip: whether the prediction has a part W_skip x, which begins at zero.
        rank_by_norm: latents are ranked by their value times the norm of what they write.
        generator: draws the initial directions; the global one if there is none.
    """

    def __init__(
        self,
        activation_dim: int,
        dict_size: int,
        nonlinearity: Nonlinearity | dict[str, Any],
        *,
        output_dim: int | None = None,
        skip: bool = False,
        rank_by_norm: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__(
            activation_dim,
            dict_size,
            nonlinearity,
            output_dim=output_dim,
            centered=False,
            skip=skip,
            rank_by_norm=rank_by_norm,
            generator=generator,
        )

    def options(self) -> dict[str, Any]:
        return {
            "activation_dim": self.activation_dim,
            "dict_size": self.dict_size,
            "nonlinearity": self.nonlinearity_options(),
            "output_dim": self.output_dim,
            "skip": self.W_skip is not None,
            "rank_by_norm": self.rank_by_norm,
        }
