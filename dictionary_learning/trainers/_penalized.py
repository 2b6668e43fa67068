"""Shared by the methods with a sparsity penalty: settings, loss, coefficient."""

import dataclasses
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.config import auto, setting
from dictionary_learning.dictionaries import Reconstruction
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._components import ScheduledValue
from dictionary_learning.trainers._config import TrainerConfig
from dictionary_learning.trainers._losses import squared_error
from dictionary_learning.trainers._penalties import PENALTIES, Penalty, Sparsity
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._schedules import ramp

_MIN_NORM = 1e-6
_OPTIONS = {
    "lp": ("p", "lp_norm"),
    "lp_root": ("p", "lp_norm"),
    "tanh": ("scale", "tanh_scale"),
    "quadratic_l0": ("target_l0", "target_l0"),
    "target_l0": ("target_l0", "target_l0"),
}
"""The option of each penalty, and the setting that it is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PenaltyConfig(TrainerConfig):
    """Settings of the methods with a penalty."""

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
    """Steps of the penalty's warm-up; by default a fifth of the run, at most 2,000."""
    mse_loss_normalization: Literal["variance", "dense_batch"] | None = None
    """variance: errors are divided by the variance, estimated once. dense_batch: each token's error
    is divided by its distance from the batch's mean (SAELens up to version 5). None: squared
    errors."""
    scale_encoder: bool = False
    """Whether the initial encoder is scaled so that the first reconstruction is best."""

    def __post_init__(self) -> None:
        super().__post_init__()
        name = PENALTIES.canonical(self.sparsity_function)
        if self.lp_norm != 1.0 and _OPTIONS.get(name, ("", ""))[1] != "lp_norm":
            raise ConfigError(
                f"lp_norm={self.lp_norm} has no effect with sparsity_function={self.sparsity_function!r}. "
                "Set sparsity_function='lp', or leave lp_norm out."
            )

    @property
    def divides_by_variance(self) -> bool:
        return self.mse_loss_normalization == "variance"

    def penalty(self) -> Penalty:
        """Returns the penalty."""
        name = PENALTIES.canonical(self.sparsity_function)
        option, value = _OPTIONS.get(name, ("", ""))
        return PENALTIES[name](**{option: getattr(self, value)} if option else {})

    def coefficient_at(self, step: int) -> float:
        """Returns the weight of the penalty at a step."""
        return self.sparsity_penalty * ramp(step, self.sparsity_warmup_steps)


class PenaltyTrainer(SAETrainer):
    """Base of the methods with a penalty.

    loss = |y - y_hat|^2 [normalized] + coefficient * penalty(latents)

    A method has a nonlinearity. It may have the penalty look at something else than the latents
    (`penalized`), and a penalty that depends on more than the step (`objective`).
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(PenaltyConfig):
        """Settings of a method with a penalty."""

    settings: Config

    def setup(self) -> None:
        self.coefficient = ScheduledValue("sparsity_coefficient", self.settings.coefficient_at)
        self.components["coefficient"] = self.coefficient

    def objective(self, batch: Batch) -> Loss:
        return self.penalized_loss(batch, self.settings.penalty(), self.coefficient.now)

    def penalized_loss(self, batch: Batch, penalty: Penalty, coefficient: float) -> Loss:
        """Returns the loss of a batch with a penalty and its weight."""
        latents, pre = self.dictionary.encode_latents(batch.x)
        outputs = self.dictionary.decode_latents(latents, batch.x)
        reconstruction = Reconstruction(outputs, latents, pre)
        error = squared_error(outputs, batch.y)
        sparsity = penalty(self.penalized(reconstruction))
        terms = {"mse_loss": error, "sparsity_loss": sparsity}
        weighted = self.settings.reconstruction_weight * self._normalized_error(outputs, batch.y, error)
        return Loss(weighted + coefficient * sparsity, error, terms, reconstruction)

    def penalized(self, reconstruction: Reconstruction) -> Sparsity:
        """Returns what penalties are computed from: by default the latents."""
        return self._sparsity(reconstruction.latents, reconstruction)

    def _sparsity(self, latents: Latents, reconstruction: Reconstruction) -> Sparsity:
        pre, by_norm = reconstruction.pre_activations, self.settings.scale_sparsity_penalty_by_decoder_norm
        assert pre is not None  # methods with a penalty have elementwise nonlinearities
        return Sparsity(self.dictionary, latents, pre, self.dictionary.decoder_norms() if by_norm else None)

    def _normalized_error(self, outputs: Tensor, y: Tensor, error: Tensor) -> Float[Tensor, ""]:
        """Returns the error as it enters the loss (`mse_loss_normalization`)."""
        if self.settings.mse_loss_normalization == "dense_batch":
            distance = (y - y.mean(0)).norm(dim=-1) + _MIN_NORM  # (batch,)
            return ((outputs - y).pow(2).sum(-1) / distance).mean()
        return self.loss_scale * error
