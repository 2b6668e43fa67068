"""The k largest of each token, whatever their sign."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES, Selects
from dictionary_learning.latents import SparseLatents


@NONLINEARITIES.register("top_k_unrectified")
class TopKUnrectified(Selects):
    """Keeps the k largest pre-activations of each token, negative ones too where fewer than k are positive.

    OpenAI's sparse_autoencoder has it as TopK with the identity after it.

    Args:
        k: how many latents of a token may be non-zero.
    """

    is_signed = True

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        values, indices = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)

    def encode_sparse(
        self,
        x: Float[Tensor, "batch dim"],
        W_enc: Float[Tensor, "dict_size dim"],
        b_enc: Float[Tensor, "dict_size"],
        center: Float[Tensor, "dim"] | None,
        k: int | None,
    ) -> SparseLatents:
        n = min(k or self.k, W_enc.shape[0])
        kept = ops.encode_where(x, W_enc, b_enc, lambda pre: pre.topk(n, sorted=False).indices, center=center)
        assert isinstance(kept, SparseLatents)
        return kept
