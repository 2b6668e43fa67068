"""The k largest of either sign."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES, Selects
from dictionary_learning.latents import SparseLatents


@NONLINEARITIES.register("abs_top_k")
class AbsTopK(Selects):
    """Keeps the k pre-activations of each token with the largest absolute value, with their signs.

    One latent can stand for a concept and its opposite.
    AbsTopK, 2025, https://arxiv.org/abs/2510.00404.

    Args:
        k: how many latents of a token may be non-zero.
    """

    is_signed = True

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        indices = pre.abs().topk(self.k, dim=-1).indices
        return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices))

    def encode_sparse(
        self,
        x: Float[Tensor, "batch dim"],
        W_enc: Float[Tensor, "dict_size dim"],
        b_enc: Float[Tensor, "dict_size"],
        center: Float[Tensor, "dim"] | None,
        k: int | None,
    ) -> SparseLatents:
        n = min(k or self.k, W_enc.shape[0])
        kept = ops.encode_where(x, W_enc, b_enc, lambda pre: pre.abs().topk(n, sorted=False).indices, center=center)
        assert isinstance(kept, SparseLatents)
        return kept
