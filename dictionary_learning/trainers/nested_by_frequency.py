"""Nested by frequency: BatchTopK whose most frequent latents are dictionaries by themselves."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.config import setting
from dictionary_learning.dictionaries import Coder, Reconstruction
from dictionary_learning.dictionaries.nonlinearities import BatchTopK, Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, firing_counts, grouped_by
from dictionary_learning.ops import backend_for
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Component, Loss, StepPart, component
from dictionary_learning.trainers._losses import squared_error
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._top_k_family import (
    TopKFamilyConfig,
    scheduled_k,
    smallest_of_batch,
    update_thresholds_,
)
from dictionary_learning.trainers.batch_top_k import batch_cut

_SHARES = (1 / 32, 1 / 8, 1 / 2)


class FiringFrequencies(Component):
    """A moving average of how often each latent fires.

    The average is a plain one over the steps so far, until `decay` limits it.
    """

    def __init__(self, dict_size: int, decay: float, device: torch.device):
        self._decay = decay
        self.frequencies: Float[Tensor, "dict_size"] = torch.zeros(dict_size, device=device)

    def after_step(self, parts: Sequence[StepPart], step: int) -> None:
        counts = torch.stack([firing_counts(part.loss.reconstruction.latents) for part in parts]).sum(0)
        n_tokens = self.ranks.total(sum(len(part.batch.x) for part in parts))
        now = self.ranks.sum(counts) / max(n_tokens, 1)
        self.frequencies.lerp_(now.to(self.frequencies), max(1 - self._decay, 1 / (step + 1)))

    @property
    def places(self) -> Int[Tensor, "dict_size"]:
        """The place of each latent in the order of frequency; 0 is the most frequent one."""
        order = self.frequencies.argsort(descending=True, stable=True)
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))

    def figures(self) -> dict[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"frequencies": self.frequencies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.frequencies.copy_(state["frequencies"])


@TRAINERS.register("nested_by_frequency")
class NestedByFrequencyTrainer(SAETrainer):
    """Trains BatchTopK with further losses on what its most frequent latents reconstruct.

    loss = (|y - y_hat|^2 + inner_weight * sum over m of |y - y_hat_m|^2) / E|y - mean|^2 + AuxK

    Here y_hat_m is decoded from the latents among the n_m most frequent ones that are kept. Its
    loss trains the latents between n_(m-1) and n_m alone: what the more frequent ones contribute is
    a constant. So a frequent latent is not bent to make up for the rare ones that are left out of
    its prefix, as in Matryoshka, and latents change their group as they become rarer or more
    frequent.

    Prefixes: Bussmann et al. 2025, https://arxiv.org/abs/2503.17547. Constants and the order by
    frequency: the search on SynthSAEBench of Chanin, 2026, with 200 million rows.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(TopKFamilyConfig):
        """Settings of dictionaries nested by frequency."""

        inner_shares: tuple[float, ...] = _SHARES
        """Share of the latents in each prefix, increasing and below 1."""
        inner_weight: float = setting(1.0, at_least=0)
        """Weight of the loss of each prefix, where that of the whole dictionary has weight 1."""
        frequency_decay: float = setting(0.99, at_least=0, below=1)
        """Decay of the moving average of firing frequencies, by steps."""

        def __post_init__(self) -> None:
            super().__post_init__()
            shares = self.inner_shares
            if not shares or list(shares) != sorted({*shares}) or not 0 < shares[0] <= shares[-1] < 1:
                raise ConfigError(f"Got inner_shares={shares}; give increasing shares between 0 and 1.")
            if self.wiring in ("heads", "cross_layer_transcoder"):
                raise ConfigError(
                    f"Prefixes are not defined for wiring={self.wiring!r}, whose latents belong to parts. Use "
                    "batch_top_k, or another wiring."
                )

    settings: Config
    annealed_k = component(scheduled_k)

    @component
    def firing(self) -> FiringFrequencies:
        """How often each latent fires."""
        return FiringFrequencies(self.dictionary.dict_size, self.settings.frequency_decay, self.device)

    @functools.cached_property
    def ends(self) -> Int[Tensor, "groups"]:
        """The number of latents in each prefix; the last is the whole dictionary."""
        n = self.dictionary.dict_size
        return torch.tensor(
            [*(max(round(share * n), 1) for share in self.settings.inner_shares), n], device=self.device
        )

    def nonlinearity(self) -> Nonlinearity:
        return BatchTopK(self.settings.k)

    def objective(self, batch: Batch) -> Loss:
        latents = self.dictionary.encode_sparse(batch.x, self.annealed_k.now)
        *inner, outputs = self.prefixes(latents, batch.x)
        error = squared_error(outputs, batch.y)
        total, terms = error, {"l2_loss": error}
        for n, prefix in enumerate(inner, start=1):
            terms[f"prefix_{n}_loss"] = squared_error(prefix, batch.y)
            total = total + self.settings.inner_weight * terms[f"prefix_{n}_loss"]
        return Loss(self.error_scale * total, error, terms, Reconstruction(outputs, latents))

    def prefixes(
        self, latents: SparseLatents, x: Float[Tensor, "batch activation_dim"]
    ) -> list[Float[Tensor, "batch output_dim"]]:
        """Returns what each prefix reconstructs, and last the whole dictionary, in one decode.

        The gradient of a prefix passes through its last group only, that of the last through all.
        """
        assert isinstance(self.dictionary, Coder)
        W_dec, n = self.dictionary.W_dec, len(self.ends)
        group = torch.searchsorted(self.ends, self.firing.places, right=True)  # (dict_size,)
        rows = backend_for(W_dec).decode(grouped_by(latents, group, n), W_dec)
        own = rearrange(rows, "(batch groups) dim -> batch groups dim", groups=n)
        sums = own.cumsum(1)  # (batch, groups, output_dim)
        inner = own + (sums - own).detach()
        parts = [*inner[:, :-1].unbind(1), sums[:, -1]]
        return [self.dictionary.with_affine_part(part, x) for part in parts]

    def sharing(self, parts: Sequence[Batch]) -> contextlib.AbstractContextManager[object]:
        return batch_cut(self.dictionary, parts, self.annealed_k.now, self.ranks)

    def after_step(self, parts: Sequence[StepPart]) -> None:
        update_thresholds_(self, self.settings, parts, smallest_of_batch)
