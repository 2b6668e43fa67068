"""The wiring from several sites to the same, by one set of latents."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.base import DICTIONARIES
from dictionary_learning.dictionaries.coder import Coder
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity


@DICTIONARIES.register("Crosscoder")
class Crosscoder(Coder):
    """Reconstructs the activations of several layers, or of several models, from one set of latents.

    latents = nonlinearity(sum over sites m of W_enc^m x^m + b_enc)
    x_hat^m = W_dec^m^T latents + b_dec^m

    Sites stand one after another: x is (batch, sum of widths), and so are W_enc and W_dec's rows. A latent's norm is the sum of
    its norms over sites; latents are ranked by their value times that norm, so that none is preferred for writing little.
    Lindsey et al. 2024, "Sparse Crosscoders"; ranking: Minder et al. 2025, https://arxiv.org/abs/2504.02922.

    Args:
        site_dims: the width of each site.
        dict_size: number of latents.
        nonlinearity: the nonlinearity, or its name and options as `{"name": "batch_top_k", "k": 32}`.
        rank_by_norm: whether latents are ranked, where a set number is kept, by value times norm.
        generator: draws the initial directions; the global one if there is none.
    """

    def __init__(
        self,
        site_dims: Sequence[int],
        dict_size: int,
        nonlinearity: Nonlinearity | dict[str, Any],
        *,
        rank_by_norm: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__(
            sum(site_dims),
            dict_size,
            nonlinearity,
            centered=False,
            rank_by_norm=rank_by_norm,
            blocks=site_dims,
            generator=generator,
        )
        self.site_dims = tuple(site_dims)

    @property
    def site_widths(self) -> tuple[Sequence[int], Sequence[int]]:
        return self.site_dims, self.site_dims

    @property
    def site_decoders(self) -> tuple[Float[Tensor, "dict_size dim"], ...]:
        """W_dec of each site; views."""
        return self.W_dec.split(self.site_dims, dim=1)

    @property
    def site_encoders(self) -> tuple[Float[Tensor, "dict_size dim"], ...]:
        """W_enc of each site; views."""
        return self.W_enc.split(self.site_dims, dim=1)

    def relative_norms(self, first: int = 0, second: int = 1) -> Float[Tensor, "dict_size"]:
        """Returns where between two sites each latent writes: 0 to the first alone, 1/2 to both alike, 1 to the second alone.

        (1 + (|d^second| - |d^first|) / max(|d^second|, |d^first|)) / 2;  Lindsey et al. 2024.
        """
        norms = [self.site_decoders[m].float().norm(dim=1) for m in (first, second)]
        largest = torch.maximum(*norms).clamp_min(torch.finfo(torch.float32).tiny)
        return (1 + (norms[1] - norms[0]) / largest) / 2

    def options(self) -> dict[str, Any]:
        return {
            "site_dims": list(self.site_dims),
            "dict_size": self.dict_size,
            "nonlinearity": self.nonlinearity_options(),
            "rank_by_norm": self.rank_by_norm,
        }
