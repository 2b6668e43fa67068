"""The k largest of either sign."""

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES
from dictionary_learning.dictionaries.nonlinearities.by_rule import SelectsByRule


@NONLINEARITIES.register("abs_top_k")
class AbsTopK(SelectsByRule):
    """Keeps the k pre-activations of each token with the largest absolute value, with their signs.

    One latent can stand for a concept and its opposite.
    AbsTopK, 2025, https://arxiv.org/abs/2510.00404.

    Args:
        k: how many latents of a token may be non-zero.
    """

    is_signed = True

    def choose(self, pre: Float[Tensor, "*batch dict_size"], k: int) -> Tensor:
        return pre.abs().topk(k, dim=-1, sorted=False).indices
