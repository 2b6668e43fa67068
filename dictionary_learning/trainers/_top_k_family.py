"""Shared by the methods that keep a set number of latents: settings, loss, k, threshold."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.config import auto, setting
from dictionary_learning.dictionaries import Dictionary, Reconstruction, Trainable
from dictionary_learning.dictionaries._trainable import CoderSlice
from dictionary_learning.dictionaries.nonlinearities import ThresholdedTopK
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, gather_per_latent, slice_latents, top_k_of
from dictionary_learning.parallel import ALONE, Ranks
from dictionary_learning.trainers._batch import Batch, Loss, StepPart
from dictionary_learning.trainers._components import ScheduledValue
from dictionary_learning.trainers._config import decay_after
from dictionary_learning.trainers._losses import squared_error
from dictionary_learning.trainers._run_info import RunInfo
from dictionary_learning.trainers._sae_config import TrainerConfig
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._schedules import annealed_k

C = TypeVar("C", bound="TopKFamilyConfig")

DEFAULT_K = 32
"""Latents per token where nothing was asked for."""
_LR_WIDTH = 2**14
_LR = {"adam": 4.5e-3, "adam_8bit": 4.5e-3, "adam_schedule_free": 4.5e-3, "signum": 5e-3, "signum_schedule_free": 5e-3}
"""Learning rates at that width, by optimizer. Those of sign-based ones are sparsify's."""
_LR_MIN_WIDTH = 512
"""Narrower dictionaries have the rate of this width. The law's rate at 128 latents (.051) gave FVU
.245 after 4 steps on sparse synthetic activations, this one .215; after 50 steps they are equal."""
_LR_MUON = 2e-3
"""Muon's, at any width (sparsify)."""
_END_TO_END = 0.2
"""Factor of the rate where the loss is the model's. At the whole rate KL fell more slowly and the
reconstruction left the activations (40 steps on SmolLM2-135M: 0.97 nats and FVU 2.7, against 0.75
nats and FVU 1.0 or less at a third and a ninth)."""


def _default_k(c: Any) -> int:
    if isinstance(c.trained, Trainable):
        return getattr(next(c.trained.coders()).coder.nonlinearity, "k", None) or DEFAULT_K
    return DEFAULT_K


def _lr_law(c: Any) -> float:
    """Returns lr * sqrt(2^14 / dict_size), the law of Gao et al. 2024 (section 3) in the width."""
    if c.optimizer == "muon":
        return _LR_MUON
    if not isinstance(c.optimizer, str):
        return c.asked.default_lr
    rate = _LR.get(c.optimizer, _LR["adam"])
    if c.loss_fn != "reconstruction":
        return rate * _END_TO_END / (c.dict_size / _LR_WIDTH) ** 0.5
    return rate / (max(c.dict_size, _LR_MIN_WIDTH) / _LR_WIDTH) ** 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopKFamilyConfig(TrainerConfig):
    """Settings of the methods that keep a set number of latents."""

    auxk_is_share_of_error: ClassVar[bool] = False

    k: int = auto(_default_k, at_least=1)
    """Latents per token; by default 32, or those of the dictionary to start from."""
    lr: float = auto(_lr_law, at_least=0)
    """Learning rate; by default 4.5e-3 / sqrt(dict_size / 2^14): the paper's law in the width, with
    a factor measured for these settings (docs/defaults.md), and at most that of 512 latents."""
    encoder_lr_factor: float = setting(0.5, at_least=0)
    decoder_lr_factor: float = setting(2.0, at_least=0)
    """Factor of the learning rate for W_dec, whose rows turn without growing."""
    beta1: float = setting(0.8, at_least=0, below=1)
    beta2: float = setting(0.95, at_least=0, below=1)
    """Adam's decay of the mean squared gradient. A low value keeps a latent that fires again after
    long from a large step."""
    eps: float = setting(6.25e-10, above=0)
    """Adam's epsilon. Gradients of rare latents are small (Gao et al. 2024, A.1)."""
    decay_start: int = auto(decay_after(1 / 5), at_least=0)
    """The step at which the learning rate starts to decay to 0; by default after 20% of the run, or
    after the warm-up."""
    max_grad_norm: float | None = setting(1e-3, above=0)
    """Gradients are scaled down to this common norm, where the loss is a share of the variance. The
    value is so low that all gradients get this length. None for no limit."""
    auxk_alpha: float = setting(1 / 32, at_least=0)
    k_anneal_steps: int | None = setting(None, at_least=1)
    """Steps over which k decays from `k_anneal_start` to its value; None for a constant k."""
    k_anneal_start: int = auto(lambda c: max(c.run.activation_dim, c.k), at_least=1)
    """Initial k where it decays; by default the width of the activations."""
    threshold_beta: float = setting(0.999, at_least=0, at_most=1)
    """Decay of the moving average that estimates the threshold for inference."""
    threshold_start_step: int = setting(1000, at_least=0)
    """The step at which that average starts. Before it, the threshold is the last batch's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_set("k", "dict_size") and self.k > self.dict_size:
            raise ConfigError(
                f"A dictionary cannot keep k={self.k} of dict_size={self.dict_size} latents; lower k or raise "
                "dict_size."
            )

    def resolved(self: C, run: RunInfo, trained: Dictionary | None) -> C:
        settings = super().resolved(run, trained)
        if settings.k_anneal_steps is None:
            settings.refuse_idle("k_anneal_start", "without k_anneal_steps", max(run.activation_dim, settings.k))
        return settings

    @property
    def divides_by_variance(self) -> bool:
        return True

    def k_at(self, step: int) -> int:
        """Returns the number of latents that are kept at a step."""
        return annealed_k(self.k, min(self.k_anneal_start, self.dict_size), step, self.k_anneal_steps)


NO_THRESHOLD: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
    ("threshold_beta", "threshold_start_step"), ("with a method that has no threshold for inference",)
)
"""What is unread where latents are chosen in another way (`TrainerConfig.unread`)."""


class ReconstructionTerm(NamedTuple):
    """A reconstruction whose error is part of the loss."""

    name: str
    weight: float
    outputs: Float[Tensor, "batch output_dim"]


def reconstruction_loss(
    y: Float[Tensor, "batch output_dim"],
    latents: SparseLatents,
    outputs: Float[Tensor, "batch output_dim"],
    scale: Float[Tensor, ""],
    further: Sequence[ReconstructionTerm] = (),
    weight: float = 1.0,
) -> Loss:
    """Returns scale * (weight * E|y - y_hat|^2 + the sum over further terms of the same).

    Args:
        y: Targets.
        latents: The latents of the dictionary.
        outputs: Its reconstruction y_hat.
        scale: Factor of the errors, such as `SAETrainer.error_scale`.
        further: Other reconstructions whose errors are part of the loss.
        weight: Weight of the dictionary's own error.
    """
    error = squared_error(outputs, y)
    errors = {"l2_loss": error} | {term.name: squared_error(term.outputs, y) for term in further}
    total = error if weight == 1.0 else weight * error  # then the others in their order, for the same bits
    for term in further:
        total = total + term.weight * errors[term.name]
    return Loss(scale * total, error, errors, Reconstruction(outputs, latents))


# `Any`: the settings of a method are narrower than those of `SAETrainer`
def scheduled_k(trainer: Any) -> ScheduledValue[int]:
    """Returns k at each step, as a component of a trainer with `TopKFamilyConfig`."""
    return ScheduledValue("effective_l0", trainer.settings.k_at)


def top_k_loss(trainer: SAETrainer, batch: Batch, k: int) -> Loss:
    """Returns the loss of a dictionary that keeps k latents per token."""
    latents = trainer.dictionary.encode_sparse(batch.x, k)
    outputs = trainer.dictionary.decode_latents(latents, batch.x)  # (batch, output_dim)
    return reconstruction_loss(batch.y, latents, outputs, trainer.error_scale)


def largest_of(dictionary: Trainable, latents: SparseLatents, k: int) -> SparseLatents:
    """Returns the k largest latents of each token, of more that are not ragged."""
    first = next(dictionary.coders()).coder
    own = top_k_of(latents, min(k, latents.values.shape[1]))
    return first.among_all(own, k)


def update_thresholds_(
    trainer: SAETrainer,
    settings: TopKFamilyConfig,
    parts: Sequence[StepPart],
    smallest: Callable[[Sequence[SparseLatents], Ranks, Ranks], Float[Tensor, ""]],
) -> None:
    """Moves thresholds after a step, to keep as many latents as training does, token by token.

    threshold <- beta * threshold + (1 - beta) * smallest kept value

    The average starts at `threshold_start_step`; before, the threshold is that of the last batch.
    It is a buffer of the nonlinearity, which is saved with the dictionary.

    `smallest` returns the smallest kept value of a step, given the latents of its parts on this
    rank, the ranks that have other tokens, and those that have other latents; infinite where no
    latent is positive.
    """
    coders = list(trainer.dictionary.coders())
    since = trainer.step - settings.threshold_start_step
    # the weight of a plain average over the steps so far, until the decay limits it: no bias
    weight = max(1 - settings.threshold_beta, 1 / (since + 1)) if since >= 0 else 1.0
    for part in coders:
        nonlinearity = part.coder.nonlinearity
        if not isinstance(nonlinearity, ThresholdedTopK):
            continue
        latents = [step_part.loss.reconstruction.latents for step_part in parts]
        own = [_ranked(each, part, whole=len(coders) == 1) for each in latents if isinstance(each, SparseLatents)]
        kept = smallest(own, trainer.ranks, trainer.latent_ranks)
        threshold = nonlinearity.threshold
        moved = torch.lerp(threshold, kept.to(threshold.dtype), weight)
        threshold.copy_(torch.where(kept < torch.inf, moved, threshold))


def smallest_of_batch(
    parts: Sequence[SparseLatents], ranks: Ranks = ALONE, latent_ranks: Ranks = ALONE
) -> Float[Tensor, ""]:
    """Returns the smallest positive value of all tokens; infinite if there is none."""
    values = _together([latents.values.detach().flatten() for latents in parts])  # (pairs of all parts,)
    # `amin` of nothing is an error, as with a batch of no tokens
    nothing = values.new_full((1,), torch.inf)
    least = torch.cat([nothing, torch.where(values > 0, values, torch.inf)]).amin()
    return latent_ranks.minimum(ranks.minimum(least))


def smallest_per_token(
    parts: Sequence[SparseLatents], ranks: Ranks = ALONE, latent_ranks: Ranks = ALONE
) -> Float[Tensor, ""]:
    """Returns the mean over tokens of the smallest positive value; infinite if there is none."""
    # tokens of a ragged support keep unequal numbers of latents: there is no (batch, k)
    if any(latents.support.is_ragged for latents in parts):
        return smallest_of_batch(parts, ranks, latent_ranks)
    values = _together([latents.values.detach() for latents in parts])  # (batch, k)
    smallest = latent_ranks.minimum(torch.where(values > 0, values, torch.inf).amin(-1))  # (batch,)
    some = smallest < torch.inf
    total, n = ranks.sum(torch.where(some, smallest, 0).sum()), ranks.sum(some.sum())
    return torch.where(n > 0, total / n, torch.inf)


def ranked_values(latents: SparseLatents, part: CoderSlice) -> Tensor:
    """Returns values, times decoder norms with `rank_by_norm`, in the shape of the values."""
    values = latents.values.detach()
    return values * gather_per_latent(part.coder.decoder_norms(), latents) if part.coder.rank_by_norm else values


def _together(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _ranked(latents: SparseLatents, part: CoderSlice, *, whole: bool) -> SparseLatents:
    # a coder numbers its latents from 0
    own = latents if whole else slice_latents(latents, part.latents.start, part.latents.stop)
    return SparseLatents(ranked_values(own, part), own.support)
