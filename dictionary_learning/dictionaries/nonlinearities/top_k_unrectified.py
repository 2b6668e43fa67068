"""The k largest of each token, whatever their sign."""

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES
from dictionary_learning.dictionaries.nonlinearities.by_rule import SelectsByRule


@NONLINEARITIES.register("top_k_unrectified")
class TopKUnrectified(SelectsByRule):
    """Keeps the k largest pre-activations of each token, negative ones too where fewer than k are positive.

    OpenAI's sparse_autoencoder has it as TopK with the identity after it.

    Args:
        k: how many latents of a token may be non-zero.
    """

    is_signed = True

    def choose(self, pre: Float[Tensor, "*batch dict_size"], k: int) -> Tensor:
        return pre.topk(k, dim=-1, sorted=False).indices
