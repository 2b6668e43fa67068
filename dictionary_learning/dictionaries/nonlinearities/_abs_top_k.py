"""The k largest latents of either sign."""

from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities._base import NONLINEARITIES, RuleSelection


@NONLINEARITIES.register("abs_top_k")
class AbsTopK(RuleSelection):
    """Keeps the k pre-activations of each token with the largest absolute value, with their signs.

    One latent can stand for a concept and its opposite.
    AbsTopK, 2025, https://arxiv.org/abs/2510.00404.

    Args:
        k: latents of a token that may be non-zero.
    """

    is_signed = True

    def choose(self, pre: Float[Tensor, "*batch dict_size"], k: int) -> Int[Tensor, "*batch k"]:
        return pre.abs().topk(k, dim=-1, sorted=False).indices
