"""Penalties on latents, where a nonlinearity does not limit their number; and the loss with one.

In the formulas, f are the latents of a token, and n_i is the decoder norm of latent i, or 1 where
norms do not count. All penalties are means over tokens.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.config import Registry, auto, setting
from dictionary_learning.dictionaries import Dictionary, Reconstruction, Trainable
from dictionary_learning.dictionaries.nonlinearities import JumpReLU
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents, n_tokens_of, replace_values
from dictionary_learning.parallel import ALONE, Ranks
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._components import ScheduledValue
from dictionary_learning.trainers._losses import mean_sum, norms, per_token, squared_error, weighted
from dictionary_learning.trainers._run_info import RunInfo
from dictionary_learning.trainers._sae_config import TrainerConfig
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._schedules import ramp

T = TypeVar("T", bound="PenaltyConfig")

_LEAST = 1e-6
"""Floor of values before a power: for p < 1 the slope of f^p has no bound at 0."""
_MIN_NORM = 1e-6
"""Added to the distance that errors are divided by, which is 0 for equal tokens."""


class Sparsity(NamedTuple):
    """What penalties are computed from."""

    dictionary: Trainable
    latents: Latents
    pre: Latents
    """Pre-activations, dense or sparse as the latents are."""
    norms: Float[Tensor, "dict_size"] | None
    """Weight of each latent; None for equal weights."""
    ranks: Ranks = ALONE
    """The processes that have other tokens of the batch."""
    latent_ranks: Ranks = ALONE
    """Those that have the other latents, over which `mean_sum` and `per_token` sum."""

    def mean_sum(self, latents: Latents) -> Float[Tensor, ""]:
        """Returns the mean over tokens of the sum of values over all latents."""
        return self.latent_ranks.add(mean_sum(latents))

    def per_token(self, latents: Latents) -> Float[Tensor, "batch"]:
        """Returns the sum of values over all latents of each token."""
        return self.latent_ranks.add(per_token(latents))

    def values(self) -> Latents:
        """Returns f_i n_i."""
        return replace_values(self.latents, weighted(self.latents, self.norms))

    def fires(self) -> Latents:
        """Returns 1[f_i > 0], with a straight-through gradient for thresholds.

        Raises:
            ConfigError: The nonlinearity has no thresholds.
        """
        _check_thresholds(self.dictionary)
        return self.dictionary.pointwise("fires", self.pre)


Penalty = Callable[[Sparsity], Tensor]
PENALTIES: Registry[Callable[..., Tensor]] = Registry("sparsity penalty")
"""Functions of a `Sparsity`, and of settings of `PenaltyConfig` by name."""


@PENALTIES.register("l1")
def l1(sparsity: Sparsity) -> Tensor:
    """Returns sum_i f_i n_i."""
    return sparsity.mean_sum(sparsity.values())


@PENALTIES.register("lp", "Lp^p")
def power_sum(sparsity: Sparsity, *, lp_norm: float = 1.0) -> Tensor:
    """Returns sum_i (f_i n_i)^p. With p < 1, large latents shrink less than with L1."""
    return sparsity.mean_sum(powers(sparsity.values(), lp_norm))


@PENALTIES.register("lp_root", "Lp")
def power_norm(sparsity: Sparsity, *, lp_norm: float = 1.0) -> Tensor:
    """Returns (sum_i (f_i n_i)^p)^(1/p)."""
    sums = sparsity.per_token(powers(sparsity.values(), lp_norm))  # (batch,)
    # at 0, without latents, the slope of the root is infinite: the gradient is 0 there
    return torch.where(sums > 0, sums.clamp_min(_LEAST).pow(1 / lp_norm), 0.0).mean()


@PENALTIES.register("tanh")
def tanh(sparsity: Sparsity, *, tanh_scale: float = 4.0) -> Tensor:
    """Returns sum_i tanh(c f_i n_i), near L0 for large latents.

    Anthropic, January 2025 update, where c = 4.
    """
    return sparsity.mean_sum(_mapped(sparsity.values(), lambda f: torch.tanh(tanh_scale * f)))


@PENALTIES.register("l0", "step")
def l0(sparsity: Sparsity) -> Tensor:
    """Returns L0: the number of latents that fire (https://arxiv.org/abs/2407.14435)."""
    return sparsity.mean_sum(sparsity.fires())  # a sum over latents, a mean over tokens


@PENALTIES.register("quadratic_l0", "quadratic")
def quadratic_l0(sparsity: Sparsity, *, target_l0: float = 20.0) -> Tensor:
    """Returns (2 / L0*) (L0 - L0*)^2 with the L0 of each token (Gemma Scope 2)."""
    return (sparsity.per_token(sparsity.fires()) - target_l0).square().mean() * (2 / target_l0)


@PENALTIES.register("target_l0")
def relative_l0(sparsity: Sparsity, *, target_l0: float = 20.0) -> Tensor:
    """Returns (L0 / L0* - 1)^2 with the mean L0 of the batch, as in dictionary-learning."""
    fires = sparsity.fires()
    return (sparsity.ranks.mean(sparsity.mean_sum(fires), n_tokens_of(fires)) / target_l0 - 1).square()


@PENALTIES.register("entropy")
def entropy(sparsity: Sparsity) -> Tensor:
    """Returns the entropy of p_i = f_i n_i / sum_j f_j n_j, which does not depend on the scale."""
    values = sparsity.values()
    totals = sparsity.per_token(values)  # (batch,)
    # -sum p log p = log S - sum f log f / S, where S = sum f
    products = sparsity.per_token(_mapped(values, lambda f: torch.where(f > 0, f * f.clamp_min(_LEAST).log(), 0.0)))
    some = totals > _LEAST
    # inside `where` too: the gradient of the branch that is not taken would be NaN
    safe = torch.where(some, totals, 1.0)
    return torch.where(some, safe.log() - products / safe, 0.0).mean()


OF_THRESHOLDS = ("l0", "step", "quadratic_l0", "quadratic", "target_l0")
"""Penalties on the number of latents, whose gradients are those of thresholds."""


def _check_thresholds(dictionary: Trainable) -> None:
    for part in dictionary.coders():
        if not isinstance(part.coder.nonlinearity, JumpReLU):
            name = type(part.coder.nonlinearity).__name__
            raise ConfigError(f"A penalty on L0 has no gradient through {name}. Use JumpReLU, or a penalty on values.")


def powers(values: Latents, p: float) -> Latents:
    """Returns f^p of each positive value f, and 0 for the others."""
    return values if p == 1 else _mapped(values, lambda f: torch.where(f > 0, f.clamp_min(_LEAST).pow(p), 0.0))


def _mapped(latents: Latents, function: Callable[[Tensor], Tensor]) -> Latents:
    return replace_values(latents, function(latents if isinstance(latents, Tensor) else latents.values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PenaltyConfig(TrainerConfig):
    """Settings of the methods with a penalty."""

    unread: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "rank_by_norm": ("with a method that keeps no set number of latents", False)
    }
    has_thresholds: ClassVar[bool | None] = None
    """Whether latents have thresholds, which a penalty on their number trains; None: not known."""
    penalizes_gates: ClassVar[bool] = False
    """Whether the penalty is on the gates of a gated dictionary, and not on its latents."""

    sparsity_penalty: float = setting(0.1, at_least=0)
    """Weight of the penalty. Its scale is that of the activations, so it differs between sites."""
    sparsity_function: str = "l1"
    """The penalty: a name of `PENALTIES`."""
    lp_norm: float = setting(1.0, above=0)
    """The power p of the penalties lp and lp_root."""
    tanh_scale: float = setting(4.0, above=0)
    """The slope c of the penalty tanh."""
    target_l0: float = setting(20.0, above=0)
    """Target number of latents per token of the penalties target_l0 and quadratic_l0."""
    scale_sparsity_penalty_by_decoder_norm: bool = False
    """Whether latents are weighted by their decoder norm, so that small latents with long rows do
    not pay less."""
    sparsity_warmup_steps: int = auto(lambda c: min(2000, c.steps // 5), at_least=0)
    """Steps over which the penalty increases from 0; by default a fifth of the run, at most
    2,000."""
    mse_loss_normalization: Literal["variance", "dense_batch"] | None = None
    """variance: errors are divided by the variance, estimated once. dense_batch: each token's error
    is divided by its distance from the batch's mean (SAELens up to version 5). None: squared
    errors."""
    scale_encoder: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        # the look-up refuses an unknown name; a recipe's target_l0 may stand beside another penalty
        if self.has_thresholds is False and self.sparsity_function in OF_THRESHOLDS:
            raise ConfigError(
                f"sparsity_function={self.sparsity_function!r} has no gradient in a method without thresholds. Use the "
                "trainer 'jump_relu', or l1, lp or tanh."
            )
        for name in {"lp_norm", "tanh_scale"} - self._penalty_settings().keys():
            self.refuse_idle(name, f"with sparsity_function={self.sparsity_function!r}")

    def resolved(self: T, run: RunInfo, trained: Dictionary | None) -> T:
        if self.sparsity_function in OF_THRESHOLDS:
            reason = f"with sparsity_function={self.sparsity_function!r}, which counts latents"
            self.refuse_idle("scale_sparsity_penalty_by_decoder_norm", reason)
        return super().resolved(run, trained)

    @property
    def divides_by_variance(self) -> bool:
        return self.mse_loss_normalization == "variance"

    def functions(self) -> list[Callable[..., Any]]:
        return [*super().functions(), PENALTIES[self.sparsity_function]]

    def penalty(self) -> Penalty:
        """Returns the penalty."""
        return functools.partial(PENALTIES[self.sparsity_function], **self._penalty_settings())

    def _penalty_settings(self) -> dict[str, Any]:
        _, *names = inspect.signature(PENALTIES[self.sparsity_function]).parameters
        return {name: getattr(self, name) for name in names}

    def coefficient_at(self, step: int) -> float:
        """Returns the weight of the penalty at a step."""
        return self.sparsity_penalty * ramp(step, self.sparsity_warmup_steps)


# `Any`: the settings of a method are narrower than those of `SAETrainer`
def scheduled_coefficient(trainer: Any) -> ScheduledValue[float]:
    """Returns the weight of the penalty, as a component of a trainer with `PenaltyConfig`.

    Raises:
        ConfigError: The penalty is on L0, and the nonlinearity has no thresholds.
    """
    if trainer.settings.sparsity_function in OF_THRESHOLDS:
        _check_thresholds(trainer.dictionary)
    return ScheduledValue("sparsity_coefficient", trainer.settings.coefficient_at)


def penalized_loss(
    trainer: SAETrainer, settings: PenaltyConfig, batch: Batch, penalty: Penalty, coefficient: float
) -> Loss:
    """Returns |y - y_hat|^2 [normalized] + coefficient * penalty(latents)."""
    latents, pre = trainer.dictionary.encode_latents(batch.x)
    outputs = trainer.dictionary.decode_latents(latents, batch.x)  # (batch, output_dim)
    error = squared_error(outputs, batch.y)
    reconstruction = Reconstruction(outputs, latents, pre)
    # before the error is normalized: the order of these lines is that in which gradients are summed
    sparsity = penalty(sparsity_of(trainer.dictionary, settings, reconstruction, trainer.ranks, trainer.latent_ranks))
    if settings.mse_loss_normalization == "dense_batch":
        center = trainer.ranks.mean(batch.y.mean(0), len(batch.y))
        distance = norms(batch.y - center) + _MIN_NORM  # (batch,)
        normalized = ((outputs - batch.y).pow(2).sum(-1) / distance).mean()
    else:
        normalized = trainer.loss_scale * error
    total = settings.reconstruction_weight * normalized + coefficient * sparsity
    return Loss(total, error, {"mse_loss": error, "sparsity_loss": sparsity}, reconstruction)


def sparsity_of(
    dictionary: Trainable,
    settings: PenaltyConfig,
    reconstruction: Reconstruction,
    ranks: Ranks = ALONE,
    latent_ranks: Ranks = ALONE,
) -> Sparsity:
    """Returns what the penalty of a reconstruction is computed from."""
    _, latents, pre = reconstruction  # each (batch, dict_size), dense or sparse
    assert pre is not None
    penalized = dictionary.pointwise("gate", pre) if settings.penalizes_gates else latents
    by_norm = settings.scale_sparsity_penalty_by_decoder_norm
    return Sparsity(dictionary, penalized, pre, dictionary.decoder_norms() if by_norm else None, ranks, latent_ranks)
