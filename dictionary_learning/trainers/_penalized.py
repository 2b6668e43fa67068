"""Shared by the methods whose latents are made sparse by a penalty: settings, loss, coefficient."""

import dataclasses
import functools
import inspect
from typing import Any, ClassVar, Literal

from dictionary_learning.config import auto, setting
from dictionary_learning.dictionaries import Reconstruction, Trainable
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers._batch import Batch, Loss, ScheduledValue
from dictionary_learning.trainers._config import TrainerConfig
from dictionary_learning.trainers._losses import norms, squared_error
from dictionary_learning.trainers._penalties import PENALTIES, Penalty, Sparsity
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._schedules import ramp

_MIN_NORM = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class PenaltyConfig(TrainerConfig):
    """Settings of the methods with a penalty."""

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
    """Steps over which the penalty increases from 0; by default a fifth of the run, at most 2,000."""
    mse_loss_normalization: Literal["variance", "dense_batch"] | None = None
    """variance: errors are divided by the variance, estimated once. dense_batch: each token's error
    is divided by its distance from the batch's mean (SAELens up to version 5). None: squared errors."""
    scale_encoder: bool = False
    """Whether the initial encoder is scaled so that the first reconstruction is best."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # the look-up refuses an unknown name
        if "lp_norm" not in self._penalty_settings() and self.lp_norm != 1.0:
            raise ConfigError(
                f"lp_norm={self.lp_norm} has no effect with sparsity_function={self.sparsity_function!r}. "
                "Set sparsity_function='lp', or leave lp_norm out."
            )

    @property
    def divides_by_variance(self) -> bool:
        return self.mse_loss_normalization == "variance"

    def penalty(self) -> Penalty:
        """Returns the penalty."""
        return functools.partial(PENALTIES[self.sparsity_function], **self._penalty_settings())

    def _penalty_settings(self) -> dict[str, Any]:
        _, *names = inspect.signature(PENALTIES[self.sparsity_function]).parameters
        return {name: getattr(self, name) for name in names}

    def coefficient_at(self, step: int) -> float:
        """Returns the weight of the penalty at a step."""
        return self.sparsity_penalty * ramp(step, self.sparsity_warmup_steps)


def scheduled_coefficient(trainer: Any) -> ScheduledValue[float]:
    """Returns the weight of the penalty, as a component of a trainer with `PenaltyConfig`."""
    return ScheduledValue("sparsity_coefficient", trainer.settings.coefficient_at)


def penalized_loss(
    trainer: SAETrainer, settings: PenaltyConfig, batch: Batch, penalty: Penalty, coefficient: float
) -> Loss:
    """Returns |y - y_hat|^2 [normalized] + coefficient * penalty(latents)."""
    latents, pre = trainer.dictionary.encode_latents(batch.x)
    outputs = trainer.dictionary.decode_latents(latents, batch.x)  # (batch, output_dim)
    error = squared_error(outputs, batch.y)
    reconstruction = Reconstruction(outputs, latents, pre)
    sparsity = penalty(sparsity_of(trainer.dictionary, settings, reconstruction))
    if settings.mse_loss_normalization == "dense_batch":
        distance = norms(batch.y - batch.y.mean(0)) + _MIN_NORM  # (batch,)
        normalized = ((outputs - batch.y).pow(2).sum(-1) / distance).mean()
    else:
        normalized = trainer.loss_scale * error
    total = settings.reconstruction_weight * normalized + coefficient * sparsity
    return Loss(total, error, {"mse_loss": error, "sparsity_loss": sparsity}, reconstruction)


def sparsity_of(dictionary: Trainable, settings: PenaltyConfig, reconstruction: Reconstruction) -> Sparsity:
    """Returns what the penalty of a reconstruction is computed from."""
    _, latents, pre = reconstruction
    assert pre is not None
    penalized = dictionary.pointwise("gate", pre) if settings.penalizes_gates else latents
    by_norm = settings.scale_sparsity_penalty_by_decoder_norm
    return Sparsity(dictionary, penalized, pre, dictionary.decoder_norms() if by_norm else None)
