"""What trainers share whose latents are made sparse by a penalty."""

import dataclasses
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import Reconstruction
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents
from dictionary_learning.ops.precision import upcast
from dictionary_learning.trainers.batch import Batch, Loss
from dictionary_learning.trainers.coder import CoderTrainer
from dictionary_learning.trainers.losses import squared_error
from dictionary_learning.trainers.penalties import PENALTIES, Penalty, Sparsity
from dictionary_learning.trainers.schedules import Ramp

_LEAST_NORM = 1e-6


class PenalizedTrainer(CoderTrainer):
    """Trains a dictionary whose latents are made sparse by a penalty.

    loss = |y - y_hat|^2 [normalized] + sparsity_penalty * warm-up * penalty(latents)
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(CoderTrainer.Config):
        """Settings of trainers with a penalty."""

        sparsity_penalty: float = 0.1
        """Weight of the penalty; its scale is that of the activations, so it is not the same for all sites."""
        sparsity_function: str = "l1"
        """The penalty: a name of `PENALTIES`."""
        lp_norm: float = 1.0
        """The power p, for the penalties lp and lp_root."""
        tanh_scale: float = 4.0
        """The slope c, for the penalty tanh."""
        target_l0: float = 20.0
        """Latents that are to fire on a token, for the penalties target_l0 and quadratic_l0."""
        scale_sparsity_penalty_by_decoder_norm: bool = False
        """Whether a latent weighs as much as the norm of what it writes, so that small latents with long rows do not pay less."""
        sparsity_warmup_steps: int | None = None
        """Steps over which the penalty rises from 0; by default a fifth of the run, at most 2,000."""
        mse_loss_normalization: Literal["variance", "dense_batch"] | None = None
        """variance: errors are a share of the variance, estimated once; dense_batch: each token's of its distance from the
        batch's mean (SAELens up to version 5); None: squared errors as they are."""
        scale_encoder: bool = False
        """Whether the encoder begins at the scale at which the first reconstruction is best."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.sparsity_penalty < 0 or self.target_l0 <= 0 or self.lp_norm <= 0:
                raise ConfigError(
                    f"Got sparsity_penalty={self.sparsity_penalty}, target_l0={self.target_l0} and lp_norm={self.lp_norm}; "
                    "the first must not be negative, the others must be positive."
                )
            if self.sparsity_function not in PENALTIES:
                PENALTIES[self.sparsity_function]

    aliases: ClassVar = {
        **CoderTrainer.aliases,
        "l1_penalty": "sparsity_penalty",
        "l1_coefficient": "sparsity_penalty",
        "initial_sparsity_penalty": "sparsity_penalty",
        "l1_warm_up_steps": "sparsity_warmup_steps",
    }

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        given = self.settings.sparsity_warmup_steps
        warmup = min(2000, self.steps // 5) if given is None else given
        self.config_values = self.settings.replace(sparsity_warmup_steps=warmup)
        self.sparsity_warmup = Ramp(warmup)

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    def penalty(self) -> Penalty:
        """Returns the penalty as it is at this step."""
        settings, name = self.settings, PENALTIES.canonical(self.settings.sparsity_function)
        options = {
            "lp": {"p": settings.lp_norm},
            "lp_root": {"p": settings.lp_norm},
            "tanh": {"scale": settings.tanh_scale},
            "quadratic_l0": {"target_l0": settings.target_l0},
            "target_l0": {"target_l0": settings.target_l0},
        }
        return PENALTIES[name](**options.get(name, {}))

    @property
    def coefficient(self) -> float:
        """The penalty's weight at this step."""
        return self.settings.sparsity_penalty * self.sparsity_warmup(self.step)

    def prepare(self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"]) -> None:
        variance = (y - y.mean(0)).pow(2).sum(-1).mean()
        if self.settings.mse_loss_normalization == "variance":
            self.loss_scale = torch.where(variance > 0, 1 / variance, 1.0)
        super().prepare(x, y)

    def reconstruct(self, batch: Batch) -> Loss:
        x, y = upcast(batch.x), upcast(batch.y)
        latents, pre = self.dictionary.encode_latents(x)
        assert pre is not None
        outputs = self.dictionary.decode_latents(latents, x)
        terms = {"mse_loss": squared_error(outputs, y)}
        terms["sparsity_loss"] = self.penalty()(self.sparsity(latents, pre))
        total = (
            self.error_weight * self.error_of(outputs, y, terms["mse_loss"]) + self.coefficient * terms["sparsity_loss"]
        )
        for name, weight, term in self.further_terms(latents, pre, Batch(x, y)):
            terms[name] = term
            total = total + weight * term
        return Loss(total, terms, Reconstruction(outputs, latents, pre))

    def sparsity(self, latents: Latents, pre: Latents) -> Sparsity:
        """Returns what the penalty looks at."""
        by_norm = self.settings.scale_sparsity_penalty_by_decoder_norm
        return Sparsity(self.dictionary, latents, pre, self.dictionary.decoder_norms() if by_norm else None)

    def further_terms(self, latents: Latents, pre: Latents, batch: Batch) -> list[tuple[str, float, Tensor]]:
        """Returns what else the method's loss has: names, weights and terms."""
        return []

    def error_of(self, outputs: Tensor, y: Tensor, mse: Tensor) -> Tensor:
        """Returns the error as it stands in the loss."""
        if self.settings.mse_loss_normalization == "dense_batch":
            distance = (y - y.mean(0)).norm(dim=-1) + _LEAST_NORM
            return ((outputs - y).pow(2).sum(-1) / distance).mean()
        return self.loss_scale * mse

    def auxk_unit(self) -> Tensor | float:
        return self.loss_scale * self.mean_error

    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        figures = super().metrics()
        if figures:
            figures["sparsity_coefficient"] = torch.tensor(self.coefficient)
        return figures
