"""The largest of a batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES
from dictionary_learning.dictionaries.nonlinearities.threshold import KeepsSetNumber
from dictionary_learning.latents import SparseLatents, Support


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

    of_each_token = False
    cut: Tensor | None = None
    """The least value kept, where it was found on a larger batch of which these tokens are a part."""

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
        if self.cut is not None:
            return _at_least(self.cut, x, W_enc, b_enc, center)
        return ops.batch_topk_encode(x, W_enc, b_enc, min(k or self.k, W_enc.shape[0]), center=center)


def _at_least(cut: Tensor, x: Tensor, W_enc: Tensor, b_enc: Tensor, center: Tensor | None) -> SparseLatents:
    """Returns the pre-activations that reach the cut, as a batch of which x is a part keeps them."""
    found = ops.encode_where(x, W_enc, b_enc, lambda pre: pre >= cut, center=center)
    if isinstance(found, SparseLatents):
        return found
    tokens, latents = (found.detach() >= cut).nonzero(as_tuple=True)
    offsets = torch.searchsorted(tokens, torch.arange(len(x) + 1, device=x.device))
    return SparseLatents(found[tokens, latents], Support(latents, W_enc.shape[0], offsets))
