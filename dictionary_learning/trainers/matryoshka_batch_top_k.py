"""Matryoshka: BatchTopK in which each prefix of the latents is a dictionary."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor

from dictionary_learning._lazy import lazy_names
from dictionary_learning.config import auto
from dictionary_learning.dictionaries import Coder, Dictionary, MatryoshkaBatchTopKSAE, SparseAutoencoder, Trainable
from dictionary_learning.dictionaries.nonlinearities import BatchTopK, Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, grouped
from dictionary_learning.ops import backend_for
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss, StepPart
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._top_k_family import (
    ReconstructionTerm,
    TopKFamilyConfig,
    reconstruction_loss,
    scheduled_k,
    smallest_of_batch,
    update_thresholds_,
)
from dictionary_learning.trainers.batch_top_k import batch_cut

logger = logging.getLogger(__name__)

_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2 + 1 / 32)
_ROUNDING = 1e-6
"""Added before a share of the latents is rounded down: n / size * size may come out below n."""


def _default_fractions(c: Any) -> tuple[float, ...]:
    if not isinstance(c.trained, MatryoshkaBatchTopKSAE):
        return _FRACTIONS
    # the last group takes what `dict_size` adds
    *inner, _ = (n / c.dict_size for n in c.trained.group_sizes)
    return (*inner, 1 - sum(inner))


@TRAINERS.register("matryoshka_batch_top_k")
class MatryoshkaBatchTopKTrainer(SAETrainer):
    """Trains a dictionary whose first latents are a dictionary by themselves, at several sizes.

    loss = sum over prefixes m of w_m |y - y_hat_m|^2 / E|y - mean|^2 + AuxK on the whole dictionary

    Here y_hat_m is decoded from the latents kept in the first m groups. One sparse decode computes
    all of them: its sums over groups are accumulated from prefix to prefix, so that the gradient of
    a latent is the sum over the prefixes that contain it.
    Bussmann et al. 2025, https://arxiv.org/abs/2503.17547.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TopKFamilyConfig):
        """Settings of Matryoshka BatchTopK."""

        autoencoder_class: ClassVar[type | None] = MatryoshkaBatchTopKSAE

        group_fractions: tuple[float, ...] = auto(_default_fractions)
        """Share of the latents in each group, with the sum 1. By default 1/32, 1/16, 1/8, 1/4 and
        the rest; or the groups of `finetune`, of which the last gets the latents that are added."""
        group_weights: tuple[float, ...] | None = None
        """Weight w_m of each prefix in the loss; by default 1 over their number.
        dictionary-learning divides by that number once more, SAELens does not divide."""

        def __post_init__(self) -> None:
            super().__post_init__()
            shares, weights = self.group_fractions, self.group_weights
            if self.is_set("group_fractions") and (abs(sum(shares) - 1) > 1e-6 or min(shares, default=0) <= 0):
                raise ConfigError(
                    f"group_fractions={shares} add up to {sum(shares):g}; positive shares with the sum 1 are needed."
                )
            if self.is_set("group_fractions") and weights is not None and len(weights) != len(shares):
                raise ConfigError(f"Got {len(weights)} group_weights for {len(shares)} groups; give as many.")
            if self.wiring in ("heads", "cross_layer_transcoder"):
                raise ConfigError(
                    f"Matryoshka groups are not defined for wiring={self.wiring!r}, whose latents belong to parts. "
                    "Use batch_top_k, or another wiring."
                )

        @property
        def group_sizes(self) -> list[int]:
            """Number of latents of each group."""
            *inner, _ = self.group_fractions
            sizes = [max(int(fraction * self.dict_size + _ROUNDING), 1) for fraction in inner]
            last = self.dict_size - sum(sizes)
            if last < 1:
                raise ConfigError(
                    f"dict_size={self.dict_size} is too small for {len(self.group_fractions)} Matryoshka groups of at "
                    "least one latent. Raise dict_size, or give fewer group_fractions."
                )
            return [*sizes, last]

        def autoencoder_options(self) -> dict[str, Any]:
            return {"group_sizes": self.group_sizes}

    settings: Config
    spreads_latents = True
    annealed_k = component(scheduled_k)

    def nonlinearity(self) -> Nonlinearity:
        return BatchTopK(self.settings.k)

    def build_dictionary(self, trained: Dictionary | None) -> Trainable:
        built, sizes = super().build_dictionary(trained), self.settings.group_sizes
        if built.decodes_itself:  # as in dictionary-learning 0.1
            said = "%s.decode is not called in training: prefixes are decoded by W_dec and b_dec."
            logger.warning(said, type(built).__name__)
        if not isinstance(built, SparseAutoencoder) or getattr(built, "group_sizes", ()) == tuple(sizes):
            return built
        # a dictionary to start from without these groups gets them
        options: dict[str, Any] = {**built.options(), "k": self.settings.k, "group_sizes": sizes}
        options.pop("nonlinearity", None)
        made = MatryoshkaBatchTopKSAE(**options, generator=torch.Generator())  # its random weights are overwritten
        made.load_state_dict(built.state_dict())
        return made.to(built.device)

    @functools.cached_property
    def group_ends(self) -> Tensor:
        """The number of this process's latents in each prefix, on the device once."""
        assert isinstance(self.dictionary, Coder)
        ends = torch.tensor(self.settings.group_sizes, device=self.device).cumsum(0)
        return (ends - self.dictionary.first_latent).clamp(0, self.dictionary.dict_size)

    def objective(self, batch: Batch) -> Loss:
        assert isinstance(self.dictionary, Coder)
        latents = self.dictionary.encode_sparse(batch.x, self.annealed_k.now)
        prefixes = self.decode_prefixes(latents)
        weights = self.settings.group_weights or [1 / len(prefixes)] * len(prefixes)
        # largest last: it is the reconstruction of the dictionary
        *smaller, outputs = [self.dictionary.with_affine_part(prefix, batch.x) for prefix in prefixes]
        terms = [
            ReconstructionTerm(f"prefix_{n}_loss", weight, prefix)
            for n, (weight, prefix) in enumerate(zip(weights, smaller, strict=False), start=1)
        ]
        return reconstruction_loss(batch.y, latents, outputs, self.error_scale, terms[::-1], weights[-1])

    def sharing(self, parts: Sequence[Batch]) -> contextlib.AbstractContextManager[object]:
        return batch_cut(self.dictionary, parts, self.annealed_k.now, self.ranks, self.latent_ranks)

    def selecting(self, coder: Coder, x: Tensor) -> contextlib.AbstractContextManager[object]:
        return batch_cut(coder, [Batch(x, x)], self.settings.k, latent_ranks=coder.latent_ranks)

    def after_step(self, parts: Sequence[StepPart]) -> None:
        update_thresholds_(self, self.settings, parts, smallest_of_batch)

    def decode_prefixes(self, latents: SparseLatents) -> tuple[Tensor, ...]:
        """Returns what each prefix decodes to, without biases, from the smallest to the whole."""
        assert isinstance(self.dictionary, Coder)
        W_dec = self.dictionary.W_dec
        by_group = self.latent_ranks.add(backend_for(W_dec).decode(grouped(latents, self.group_ends), W_dec))
        n_groups = len(self.group_ends)
        return rearrange(by_group, "(batch groups) dim -> batch groups dim", groups=n_groups).cumsum(1).unbind(1)


__all__ = ["MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKTrainer"]

# `compat` imports this package, so its names are looked up when they are used
_OLD = {"apply_temperature": "dictionary_learning.compat._functions"}
__getattr__, __dir__ = lazy_names(__name__, _OLD)
