"""The largest latents of each token, or of a batch."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities._base import NONLINEARITIES, SparseSelection, ThresholdForm
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops import Encoder


class ThresholdedTopK(SparseSelection):
    """Keeps k latents for each token, and has a threshold above which as many fire on average.

    The threshold is learned by the trainer. With it, a latent fires if its pre-activation exceeds
    the threshold, independent of the other latents and the other tokens.
    """

    is_masked_relu = True
    in_float32 = ("threshold",)
    threshold: Tensor

    def __init__(self, k: int):
        super().__init__(k)
        self.register_buffer("threshold", torch.tensor(-1.0))  # -1 stands for "not learned yet"
        self._is_learned = False
        self._state: tuple[int, int] | None = None  # identity and version of the threshold when it was last read

    @property
    def has_threshold(self) -> bool:
        """Whether a threshold was learned; waits for the device only if the tensor has changed."""
        tensor = self.threshold
        state = None if tensor.is_inference() else (id(tensor), tensor._version)
        if state is None or state != self._state:
            self._is_learned, self._state = float(tensor) >= 0, state
        return self._is_learned

    def above_threshold(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents by the learned threshold: independent of each other, k on average.

        Raises:
            ConfigError: No threshold was learned.
        """
        if not self.has_threshold:
            raise ConfigError(
                f"This {type(self).__name__} has no learnt threshold (it is -1). Train it for a step, "
                "or encode without use_threshold."
            )
        return pre.relu() * (pre > self.threshold)

    def threshold_form(self) -> ThresholdForm:
        return ThresholdForm(threshold=self.threshold.float() if self.has_threshold else None)

    def scale_(self, factor: float) -> None:
        if self.has_threshold:
            self.threshold.mul_(factor)


@NONLINEARITIES.register("top_k")
class TopK(ThresholdedTopK):
    """Keeps the k largest of relu(pre) of each token.

    Gao et al. 2024, https://arxiv.org/abs/2406.04093, section 2.3.
    """

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        values, indices = pre.relu().topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)

    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        return encoder.backend.top_k(x, encoder, k)


@NONLINEARITIES.register("batch_top_k")
class BatchTopK(ThresholdedTopK):
    """Keeps the k * batch largest latents of a batch in training, else those above a threshold.

    latents = pre * (pre >= cut), cut = the (k * batch)-th largest of relu(pre)

    A token that needs more latents gets more. Outside training the learned threshold replaces the
    cut, so that a token's latents do not depend on its batch.
    Bussmann et al. 2024, https://arxiv.org/abs/2412.06410
    """

    of_each_token = False
    cut: Tensor | None = None
    """The least kept value of a larger batch, if these tokens are a part of one."""

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        return self.above_threshold(pre)

    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        cut = self.cut
        if cut is None:
            return encoder.backend.batch_top_k(x, encoder, k)
        found = encoder.backend.encode_where(x, encoder, lambda pre: pre >= cut)
        if isinstance(found, SparseLatents):
            return found
        tokens, latents = (found.detach() >= cut).nonzero(as_tuple=True)  # (pairs,)
        offsets = torch.searchsorted(tokens, torch.arange(len(x) + 1, device=x.device))
        return SparseLatents(found[tokens, latents], Support(latents, len(encoder.W), offsets))
