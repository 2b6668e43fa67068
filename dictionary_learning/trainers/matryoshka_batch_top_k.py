"""Matryoshka: BatchTopK of which each prefix is a dictionary."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries import Coder, MatryoshkaBatchTopKSAE, SparseAutoencoder, Trainable
from dictionary_learning.dictionaries.nonlinearities import BatchTopK, Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, grouped
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.batch import Batch
from dictionary_learning.trainers.selecting import Attempt, SelectingTrainer

_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2 + 1 / 32)
_ROUNDING = 1e-6
"""Added before a share of the latents is rounded down: n / size * size may come out below n."""


@TRAINERS.register("matryoshka_batch_top_k")
class MatryoshkaBatchTopKTrainer(SelectingTrainer):
    """Trains a dictionary whose first latents are a dictionary by themselves, and with more of them another.

    loss = sum over prefixes m of w_m |y - y_hat_m|^2 / E|y - mean|^2 + the auxiliary loss, of the whole dictionary's error

    where y_hat_m is decoded from the latents kept in the first m groups. All are made by one sparse decode: its sums over groups
    are added up from prefix to prefix, and so the gradient of a latent is the sum over the prefixes that it is in.
    Bussmann et al. 2025, https://arxiv.org/abs/2503.17547.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SelectingTrainer.Config):
        """Settings of Matryoshka BatchTopK."""

        group_fractions: tuple[float, ...] | None = None
        """Share of the latents in each group; they add up to 1. By default 1/32, 1/16, 1/8, 1/4 and the rest, or the groups of the
        dictionary to begin with, of which the last takes the latents that are added."""
        group_weights: tuple[float, ...] | None = None
        """w_m, the weight of each prefix in the loss; by default one over their number. dictionary-learning divides by that number
        once more, SAELens does not divide."""

        def __post_init__(self) -> None:
            super().__post_init__()
            shares = self.group_fractions
            if shares is not None and (abs(sum(shares) - 1) > 1e-6 or min(shares, default=0) <= 0):
                raise ConfigError(
                    f"group_fractions={shares} add up to {sum(shares):g}; positive shares with the sum 1 are needed."
                )
            if shares is not None and self.group_weights is not None and len(self.group_weights) != len(shares):
                raise ConfigError(
                    f"Got {len(self.group_weights)} group_weights for {len(shares)} groups; give as many."
                )
            if self.wiring in ("heads", "cross_layer_transcoder"):
                raise ConfigError(
                    f"Matryoshka groups are not defined for wiring={self.wiring!r}, whose latents belong to parts. "
                    "Use batch_top_k, or another wiring."
                )

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    def build(self) -> Trainable:
        built = super().build()
        if not isinstance(built, SparseAutoencoder) or getattr(built, "group_sizes", ()) == tuple(self.group_sizes):
            return built
        # a dictionary to begin with that has no groups gets some, and one that has other groups these
        options = {**built.options(), "k": self.last_k, "group_sizes": self.group_sizes}
        options.pop("nonlinearity", None)
        made = MatryoshkaBatchTopKSAE(**options, generator=torch.Generator())  # what it draws is overwritten
        made.load_state_dict(built.state_dict())
        return made.to(built.device)

    def fill_in(self, trained: Trainable | None) -> None:
        super().fill_in(trained)
        if self.settings.group_fractions is not None:
            return
        shares = _FRACTIONS
        if isinstance(trained, MatryoshkaBatchTopKSAE):
            size = self._given_size or trained.dict_size
            *inner, _ = (n / size for n in trained.group_sizes)
            shares = (*inner, 1 - sum(inner))
        self.config_values = self.settings.replace(group_fractions=shares)

    @property
    def group_sizes(self) -> list[int]:
        """How many latents each group has."""
        *inner, _ = self.settings.group_fractions or _FRACTIONS
        sizes = [max(int(fraction * self.dict_size + _ROUNDING), 1) for fraction in inner]
        return [*sizes, self.dict_size - sum(sizes)]

    def nonlinearity(self) -> Nonlinearity:
        return BatchTopK(self.last_k)

    def named_class(self) -> type:
        return MatryoshkaBatchTopKSAE

    def named_options(self) -> dict[str, Any]:
        return {**super().named_options(), "group_sizes": self.group_sizes}

    def attempts(self, batch: Batch) -> tuple[SparseLatents, list[Attempt]]:
        latents, _ = self.dictionary.encode_latents(batch.x, self.k)
        assert isinstance(latents, SparseLatents) and isinstance(self.dictionary, Coder)
        prefixes = self.decode_prefixes(latents)
        weights = self.settings.group_weights or [1 / len(prefixes)] * len(prefixes)
        outputs = [self.dictionary.with_affine_part(prefix, batch.x) for prefix in prefixes]
        names = ["l2_loss" if n == len(prefixes) else f"prefix_{n}_loss" for n in range(1, len(prefixes) + 1)]
        attempts = [Attempt(*parts) for parts in zip(names, weights, outputs, strict=True)]
        return latents, attempts[::-1]

    def decode_prefixes(self, latents: SparseLatents) -> tuple[Tensor, ...]:
        """Returns what each prefix decodes to, without biases, from the smallest to the whole."""
        ends = torch.tensor(self.group_sizes, device=latents.values.device).cumsum(0)
        assert isinstance(self.dictionary, Coder)
        by_group = ops.sparse_decode(grouped(latents, ends), self.dictionary.W_dec)
        return by_group.unflatten(0, (-1, len(ends))).cumsum(1).unbind(1)


__all__ = ["MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKTrainer"]
