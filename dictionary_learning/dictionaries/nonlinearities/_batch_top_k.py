"""The largest latents of a batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities._base import NONLINEARITIES
from dictionary_learning.dictionaries.nonlinearities._top_k import ThresholdedTopK
from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops import Encoder


@NONLINEARITIES.register("batch_top_k")
class BatchTopK(ThresholdedTopK):
    """Keeps the k * batch largest latents of a batch in training, else those above a threshold.

    latents = pre * (pre >= cut), cut = the (k * batch)-th largest of relu(pre)

    A token that needs more latents gets more. Outside training the learned threshold replaces the
    cut, so that a token's latents do not depend on its batch.
    Bussmann et al. 2024, https://arxiv.org/abs/2412.06410

    Args:
        k: latents to keep for each token, on average.
    """

    of_each_token = False
    cut: Tensor | None = None
    """The least kept value of a larger batch, if these tokens are a part of one."""

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        return self.above_threshold(pre)

    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        if self.cut is None:
            return encoder.backend.batch_top_k(x, encoder, k)
        return _at_least(self.cut, x, encoder)


def _at_least(cut: Tensor, x: Tensor, encoder: Encoder) -> SparseLatents:
    """Returns the pre-activations that reach the cut."""
    found = encoder.backend.encode_where(x, encoder, lambda pre: pre >= cut)
    if isinstance(found, SparseLatents):
        return found
    tokens, latents = (found.detach() >= cut).nonzero(as_tuple=True)  # (pairs,)
    offsets = torch.searchsorted(tokens, torch.arange(len(x) + 1, device=x.device))
    return SparseLatents(found[tokens, latents], Support(latents, len(encoder.W), offsets))
