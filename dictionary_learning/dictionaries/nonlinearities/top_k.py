"""The k largest of each token."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES
from dictionary_learning.dictionaries.nonlinearities.threshold import ThresholdedTopK
from dictionary_learning.latents import SparseLatents
from dictionary_learning.ops.encoder import Encoder


@NONLINEARITIES.register("top_k")
class TopK(ThresholdedTopK):
    """Keeps the k largest of relu(pre) of each token.

    Gao et al. 2024, https://arxiv.org/abs/2406.04093, section 2.3.

    Args:
        k: how many latents of a token may be non-zero.
    """

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        values, indices = pre.relu().topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)

    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        return ops.topk_encode(x, encoder.W, encoder.b, k, center=encoder.center)
