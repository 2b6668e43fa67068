"""The effects of latents and of errors on a scalar of the logits."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dictionary_learning._brief import brief, top_few
from dictionary_learning.data import TokenBatch
from dictionary_learning.errors import ConfigError
from dictionary_learning.sites import Site, SiteDict

Method = Literal["gradient", "patching", "integrated", "ablation"]


class Effects(NamedTuple):
    """Effects of one dictionary: an entry for each token and latent that is active there.

    An effect is positive where the latent, as it is, raises the metric above what it would be with
    the latent's value in the baseline.
    """

    row: Int[Tensor, "entries"]
    position: Int[Tensor, "entries"]
    latent: Int[Tensor, "entries"]
    activation: Float[Tensor, "entries"]
    baseline: Float[Tensor, "entries"]
    """The latent's value in the baseline."""
    gradient: Float[Tensor, "entries"]
    """Of the metric by the latent: effect = gradient * (activation - baseline)."""
    effect: Float[Tensor, "entries"]
    error: Float[Tensor, "batch ctx"]
    """The effect of what the dictionary does not explain, at each token and all sites together."""
    mask: Bool[Tensor, "batch ctx"]
    """The tokens whose latents count."""
    change: float
    """The metric, less what it is with all latents and errors of the site at the baseline."""
    dict_size: int
    sites: tuple[Site, ...]
    """The sites that are written, in the order of the model."""
    site_error: Float[Tensor, "sites batch ctx"]
    """The effect of the error of each."""

    def __repr__(self) -> str:
        return (
            f"Effects({len(self.effect):,} entries of {self.dict_size:,} latents at {', '.join(map(str, self.sites))}; "
            f"total {self.total:.4g}, change {self.change:.4g}; "
            f"largest (latent at position): {top_few(self.effect, self.latent.tolist(), self.position.tolist())})"
        )

    @property
    def total(self) -> float:
        """The sum of all effects, errors included; what it lacks of `change` is the method's."""
        return float(self.effect.sum() + self.error.sum())

    def top(self, n: int) -> Int[Tensor, "n"]:
        """Returns the places of the entries of largest effect in either direction.

        Raises:
            ConfigError: n is below 1.
        """
        if n < 1:
            raise ConfigError(f"Got n={n}; give at least 1.")
        return self.effect.abs().topk(min(n, len(self.effect))).indices

    def by_latent(self) -> Float[Tensor, "dict_size"]:
        """Returns the sum of each latent's effects over tokens."""
        return self.effect.new_zeros(self.dict_size).index_add(0, self.latent, self.effect)

    def by_token(self) -> Float[Tensor, "batch ctx"]:
        """Returns the sum of the latents' effects at each token, without the error's."""
        out = torch.zeros(self.mask.shape, dtype=self.effect.dtype)
        return out.index_put((self.row, self.position), self.effect, accumulate=True)


class Attribution(NamedTuple):
    """Effects on a metric, by the site that a dictionary reconstructs, or the first of several."""

    effects: SiteDict[Effects]
    metric: float
    """Of the unchanged model."""
    method: Method
    tokens: TokenBatch
    baseline: TokenBatch | None
    """The other inputs, whose latents are the baseline; None if that is 0."""

    __repr__ = brief
