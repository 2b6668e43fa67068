"""What a user can choose about training an encoder and a decoder around a nonlinearity."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from dictionary_learning.config import auto, setting
from dictionary_learning.dictionaries import WIRINGS, Dictionary, ParallelCoders, Trainable, wiring_of
from dictionary_learning.dictionaries._folding import can_fold_decoder_norm
from dictionary_learning.dictionaries._trainable import CenterName
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers._config import OptimizationConfig
from dictionary_learning.trainers._run_info import RunInfo
from dictionary_learning.trainers._schedules import Rewarm, Schedule

T = TypeVar("T", bound="TrainerConfig")

_DEAD_AFTER = 10_000_000
"""Tokens without firing after which a latent is dead (Gao et al. 2024, A.2)."""


def _default_wiring(c: Any) -> str:
    return wiring_of(c.trained) if isinstance(c.trained, Trainable) else "autoencoder"


def _default_unit_rows(c: Any) -> bool:
    if not WIRINGS[c.wiring].unit_rows:
        return False
    if not isinstance(c.trained, Trainable) or any(part.coder.is_tied for part in c.trained.coders()):
        return True
    # where norms decide which latents are kept, rows that were trained keep theirs
    return can_fold_decoder_norm(c.trained)


def _default_k_aux(c: Any) -> int:
    outputs = c.run.output_dims or (c.run.read_dims if c.trained is None else (c.trained.output_dim,))
    return max(sum(outputs) // 2, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig(OptimizationConfig):
    """Settings of every method that trains an encoder and a decoder around a nonlinearity."""

    subtracts_b_dec: ClassVar[bool] = True
    """Whether the method's autoencoder subtracts b_dec before encoding."""
    unread: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Settings that the method does not read: the reason, and values that say nothing else. Others
    are refused."""
    autoencoder_class: ClassVar[type | None] = None
    """Class of the method's autoencoder; None for the one known for the nonlinearity."""
    auxk_is_share_of_error: ClassVar[bool] = True
    """Whether AuxK's share is of the error in the loss; False: of 1, as where errors are shares of
    the variance (TopK)."""

    wiring: str = auto(_default_wiring)
    """What is read and written: autoencoder, transcoder, skip_transcoder, crosscoder,
    cross_layer_transcoder or heads. By default autoencoder, or that of `finetune`."""
    n_heads: int | None = setting(None, at_least=1)
    """Attention heads, where each has latents of its own (wiring heads)."""
    dict_class: type | None = None
    """Class of an autoencoder; by default the one known for the nonlinearity."""
    encoder_lr_factor: float = setting(1.0, at_least=0)
    """Factor of the learning rate for W_enc."""
    decoder_lr_factor: float = setting(1.0, at_least=0)
    """Factor of the learning rate for W_dec."""
    unit_norm_decoder: bool = auto(_default_unit_rows)
    """Whether decoder rows are kept at unit norm, with gradients orthogonal to them. By default for
    wirings whose outputs are their inputs. A dictionary given as `finetune` gets such rows without
    a change of its outputs; where that is impossible, its rows stay free."""
    apply_b_dec_to_input: bool = auto(lambda c: c.asked.subtracts_b_dec)
    """Whether an autoencoder subtracts b_dec before encoding; by default as the method does."""
    rank_by_norm: bool | None = None
    """Whether latents are ranked by value times decoder norm; None: for crosscoders."""
    b_dec_init_method: CenterName = "geometric_median"
    """Initial b_dec: geometric_median, mean or zeros."""
    scale_encoder: bool = True
    """Whether the initial encoder is scaled so that the first reconstruction is best."""
    decoder_init_norm: float | None = setting(None, above=0)
    """Initial norm of the decoder rows; by default 1, or what fits the data where another site is
    written."""
    decoder_init_data_share: float = setting(0.0, at_least=0, at_most=1)
    """Share of differences between activations in the initial decoder rows, the rest of which is
    random; 0.35 learns more in runs of less than a million tokens (docs/defaults.md). Only where
    the encoder starts as the decoder's transpose."""
    init_encoder_as_decoder_transpose: bool = True
    """Whether the initial encoder is the decoder's transpose, where widths are equal; otherwise it
    has random rows of its own."""
    orthogonal_init: bool = False
    """Whether initial decoder rows are orthogonal, as many at a time as the width allows."""
    loss_fn: Literal["reconstruction", "ce", "kl"] = "reconstruction"
    """Training objective: the reconstruction error; or, on a `ContextStream`, the model's
    cross-entropy or KL divergence with the reconstruction spliced in (Braun et al. 2024,
    https://arxiv.org/abs/2405.12241)."""
    activation_checkpointing: bool = False
    """Whether the model's layers run again for the gradients of loss_fn ce or kl, instead of
    keeping their activations: less memory, for one more forward pass."""
    reconstruction_weight: float = auto(lambda c: float(c.loss_fn == "reconstruction"), at_least=0)
    """Weight of the error in the loss; by default 1, and 0 with loss_fn ce or kl."""
    auxk_alpha: float = setting(0.0, at_least=0)
    """Weight of the auxiliary loss of dead latents (AuxK). It reaches those with positive values
    that are not kept, and none of ReLU or Gated that never fires."""
    k_aux: int = auto(_default_k_aux, at_least=1)
    """Dead latents that AuxK uses per token; by default half the width of the activations."""
    auxk_every: int = setting(1, at_least=1)
    """AuxK is computed on every n-th token. With 2 it costs half, and revives fewer latents
    (docs/defaults.md)."""
    use_ghost_grads: bool = False
    """Whether dead latents get ghost gradients."""
    pre_act_loss_coefficient: float = setting(0.0, at_least=0)
    """Weight of the loss that pulls pre-activations of dead latents up."""
    resample_steps: int | None = setting(None, at_least=1)
    """Steps between two resamplings of dead latents, each with a new warm-up; None for never."""
    dead_feature_threshold: float = setting(_DEAD_AFTER, above=0, at_most=2**62)
    """Tokens without firing after which a latent is dead. Below 1 it is a frequency: a latent that
    fires on a smaller share of `feature_sampling_window` tokens is dead (as in SAELens)."""
    dead_feature_window: int | None = setting(None, at_least=1)
    """Tokens without firing after which a latent is dead, where the threshold is a frequency."""
    feature_sampling_window: int = setting(2_000_000, at_least=1)
    """Tokens over which frequencies are estimated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_fn != "reconstruction" and self.micro_acc_steps > 1:
            raise ConfigError(
                f"loss_fn={self.loss_fn!r} runs the model on whole contexts, which micro_acc_steps="
                f"{self.micro_acc_steps} would cut. Give fewer contexts per batch, and use grad_acc_steps."
            )
        if self.activation_checkpointing and not self.needs_predictions:
            raise ConfigError(
                f"Got activation_checkpointing=True with loss_fn={self.loss_fn!r}, which needs no gradients through "
                "the model. Leave it out, or set loss_fn to 'ce' or 'kl'."
            )
        if self.dict_class is not None and self.wiring not in (None, "autoencoder"):
            raise ConfigError(
                f"Got dict_class={self.dict_class.__name__} with wiring={self.wiring!r}; the class is that of an "
                "autoencoder. Leave one of the two out."
            )
        if self.is_set("wiring"):
            WIRINGS[self.wiring]  # raises for an unknown name

    @property
    def needs_predictions(self) -> bool:
        return self.loss_fn != "reconstruction"

    @property
    def divides_by_variance(self) -> bool:
        """Whether errors are divided by the variance of the targets."""
        return False

    @property
    def dead_after_tokens(self) -> int:
        """Tokens without firing after which a latent is dead."""
        if self.dead_feature_window is not None:
            return self.dead_feature_window
        return int(self.dead_feature_threshold if self.dead_feature_threshold >= 1 else _DEAD_AFTER)

    @property
    def min_frequency(self) -> float | None:
        """The share of tokens below which a latent is dead, where the threshold is one."""
        return self.dead_feature_threshold if self.dead_feature_threshold < 1 else None

    def resolved(self: T, run: RunInfo, trained: Dictionary | None) -> T:
        settings = super().resolved(run, trained)
        for name, (reason, *harmless) in self.unread.items():
            self.refuse_idle(name, reason, *harmless)
        if reason := settings._random_rows(trained):
            settings.refuse_idle("decoder_init_data_share", reason, 0.0)
        if settings.wiring != "heads":
            settings.refuse_idle("n_heads", f"with wiring={settings.wiring!r}, only with 'heads'")
        elif isinstance(trained, ParallelCoders):
            settings.refuse_idle("n_heads", f"on a dictionary of {len(trained.parts)} heads", len(trained.parts))
        return settings

    def _random_rows(self, trained: Dictionary | None) -> str | None:
        """Returns why initial decoder rows have nothing of the data; None where they may."""
        if trained is not None:
            return "on a trained dictionary"
        if WIRINGS[self.wiring].writes_others:
            return f"with wiring={self.wiring!r}, whose decoder is fitted to the data"
        if not self.init_encoder_as_decoder_transpose:
            return "with init_encoder_as_decoder_transpose=False"
        return "with orthogonal_init=True" if self.orthogonal_init else None

    def autoencoder_options(self) -> dict[str, Any]:
        """Returns arguments of the autoencoder's class beyond those of its nonlinearity."""
        return {}

    def learning_rate_schedule(self, steps: int) -> Schedule:
        schedule = super().learning_rate_schedule(steps)
        if self.resample_steps is None:
            return schedule
        return Rewarm(schedule, self.resample_steps, max(min(self.warmup_steps, self.resample_steps), 1))
