"""The k largest latents of each token."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities._base import (
    NONLINEARITIES,
    RuleSelection,
    SparseSelection,
    ThresholdForm,
)
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents
from dictionary_learning.ops import Encoder


class ThresholdedTopK(SparseSelection):
    """Keeps k latents for each token, and has a threshold above which as many fire on average.

    The threshold is learned by the trainer. With it, a latent fires if its pre-activation exceeds
    the threshold, independent of the other latents and the other tokens.

    Args:
        k: latents to keep for each token.
    """

    is_masked_relu = True
    threshold: Tensor

    in_float32 = ("threshold",)

    def __init__(self, k: int):
        super().__init__(k)
        self.register_buffer("threshold", torch.tensor(-1.0))  # -1 stands for "not learned yet"
        self._is_learned = False
        self._state: tuple[int, int] | None = None  # identity and version of the threshold when it was last read

    @property
    def has_threshold(self) -> bool:
        """Whether a threshold was learned; waits for the device only if the tensor has changed."""
        tensor = self.threshold
        state = None if tensor.is_inference() else (id(tensor), tensor._version)  # pyright: ignore[reportPrivateUsage]
        if state is None or state != self._state:
            self._is_learned, self._state = float(tensor) >= 0, state
        return self._is_learned

    def above_threshold(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents by the learned threshold: independent of each other, k on average.

        Raises:
            ConfigError: no threshold was learned.
        """
        if not self.has_threshold:
            raise ConfigError(
                f"This {type(self).__name__} has no learnt threshold (it is -1). Train it for a step, "
                "or encode without use_threshold."
            )
        return pre.relu() * (pre > self.threshold)

    def threshold_form(self) -> ThresholdForm:
        return ThresholdForm(threshold=self.threshold if self.has_threshold else None)

    def scale_(self, factor: float) -> None:
        if self.has_threshold:
            self.threshold.mul_(factor)


@NONLINEARITIES.register("top_k")
class TopK(ThresholdedTopK):
    """Keeps the k largest of relu(pre) of each token.

    Gao et al. 2024, https://arxiv.org/abs/2406.04093, section 2.3.

    Args:
        k: latents of a token that may be non-zero.
    """

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        values, indices = pre.relu().topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)

    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        return encoder.backend.top_k(x, encoder, k)


@NONLINEARITIES.register("top_k_unrectified")
class TopKUnrectified(RuleSelection):
    """Keeps the k largest pre-activations of each token, whatever their sign.

    OpenAI's sparse_autoencoder has it as TopK followed by the identity.

    Args:
        k: latents of a token that may be non-zero.
    """

    is_signed = True

    def choose(self, pre: Float[Tensor, "*batch dict_size"], k: int) -> Int[Tensor, "*batch k"]:
        return pre.topk(k, dim=-1, sorted=False).indices
