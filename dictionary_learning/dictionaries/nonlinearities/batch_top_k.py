"""The largest of a batch."""

from jaxtyping import Float
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES
from dictionary_learning.dictionaries.nonlinearities.threshold import KeepsSetNumber
from dictionary_learning.latents import SparseLatents


@NONLINEARITIES.register("batch_top_k")
class BatchTopK(KeepsSetNumber):
    """Keeps the k * batch largest latents of a batch together in training, and those above a threshold otherwise.

    latents = pre * (pre >= cut), cut = the (k * batch)-th largest of relu(pre)

    A token that needs more latents gets more. Outside training the learnt threshold takes the cut's place, so that a token's
    latents do not depend on its batch.
    Bussmann et al. 2024, https://arxiv.org/abs/2412.06410

    Args:
        k: how many latents are kept for each token, on average.
    """

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        return self.above_threshold(pre)

    def encode_sparse(
        self,
        x: Float[Tensor, "batch dim"],
        W_enc: Float[Tensor, "dict_size dim"],
        b_enc: Float[Tensor, "dict_size"],
        center: Float[Tensor, "dim"] | None,
        k: int | None,
    ) -> SparseLatents:
        return ops.batch_topk_encode(x, W_enc, b_enc, min(k or self.k, W_enc.shape[0]), center=center)
