"""The k largest of each token."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.config import coerce
from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES, Nonlinearity
from dictionary_learning.errors import ConfigError


@NONLINEARITIES.register("top_k")
class TopK(Nonlinearity):
    """Keeps the k largest of relu(pre) of each token.

    A trainer may learn a `threshold` beside it; with that, a latent fires where its pre-activation exceeds the
    threshold, whatever the others do.

    Gao et al. 2024, https://arxiv.org/abs/2406.04093, section 2.3.

    Args:
        k: how many latents of a token may be non-zero.

    Raises:
        ConfigError: k is not a positive whole number.
    """

    threshold: Tensor

    def __init__(self, k: int):
        super().__init__()
        try:
            k = coerce(k, int)
        except TypeError:
            raise ConfigError(f"TopK got k={k!r}; k is a whole number of latents.") from None
        if k < 1:
            raise ConfigError(f"TopK cannot keep k={k} latents; k must be at least 1.")
        self.k = self.fixed_k = k
        # always float32: a bfloat16 average would stop moving. -1 says that none was learnt yet.
        self.register_buffer("threshold", torch.tensor(-1.0))

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        values, indices = pre.relu().topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, indices, values)

    def above_threshold(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        """Returns the latents by the learnt threshold: they do not depend on each other, and k holds on average.

        Raises:
            ConfigError: no threshold was learnt.
        """
        if float(self.threshold) < 0:
            raise ConfigError(
                "This TopK has no learnt threshold (it is -1). Train it for a step, or encode without use_threshold."
            )
        return pre.relu() * (pre > self.threshold)

    def options(self) -> dict[str, Any]:
        return {"k": self.k}

    def _apply(self, fn: Any, recurse: bool = True) -> "TopK":
        threshold = self.threshold
        super()._apply(fn, recurse)
        self.threshold = threshold.to(self.threshold.device)  # moves with the module, but stays float32
        return self

    def scale_(self, factor: float) -> None:
        if float(self.threshold) >= 0:  # the mark for "none yet" is not a threshold
            self.threshold.mul_(factor)
