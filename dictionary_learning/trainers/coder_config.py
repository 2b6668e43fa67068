"""The settings that all methods have."""

import dataclasses
from typing import Literal

from dictionary_learning.dictionaries import WIRINGS
from dictionary_learning.dictionaries.trainable import CenterName
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers.optimized import OptimizedTrainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoderConfig(OptimizedTrainer.Config):
    """Settings that all methods have."""

    wiring: str | None = None
    """What is read and written: autoencoder, transcoder, skip_transcoder, crosscoder, cross_layer_transcoder, heads. By default
    autoencoder, or that of the dictionary to begin with."""
    site_dims: tuple[int, ...] | None = None
    """Width of each site that is read; `trainSAE` finds them."""
    output_dims: tuple[int, ...] | None = None
    """Width of each site that is written, where it is not what is read; `trainSAE` finds them."""
    n_heads: int | None = None
    """Attention heads, where each has latents of its own (wiring heads)."""
    dict_class: type | None = None
    """The class of an autoencoder, built with the same arguments as the method's own."""
    encoder_lr_factor: float = 1.0
    """What the learning rate is multiplied by for W_enc."""
    decoder_lr_factor: float = 1.0
    """What the learning rate is multiplied by for W_dec."""
    unit_norm_decoder: bool | None = None
    """Whether decoder rows have unit norm after each step, and gradients no part along them; None: if outputs are inputs. A trained
    dictionary to begin with is given such rows without changing its outputs; where that cannot be, None leaves its rows free."""
    apply_b_dec_to_input: bool | None = None
    """Whether an autoencoder subtracts b_dec before encoding; None for the method's own."""
    rank_by_norm: bool | None = None
    """Whether latents are ranked by value times decoder norm; None: for crosscoders."""
    b_dec_init_method: CenterName = "geometric_median"
    """Where b_dec begins: geometric_median, mean or zeros."""
    scale_encoder: bool = True
    """Whether the encoder begins at the scale at which the first reconstruction is best, instead of with unit rows."""
    decoder_init_norm: float | None = None
    """Norm of the decoder's rows at first; by default 1, and what fits the data where the decoder writes another site."""
    init_encoder_as_decoder_transpose: bool = True
    """Whether the encoder begins as the decoder's transpose, where both have the same width."""
    orthogonal_init: bool = False
    """Whether the decoder's rows begin orthogonal to each other, as many at a time as the width allows."""
    loss_fn: Literal["reconstruction", "ce", "kl"] = "reconstruction"
    """What is to be small: the error, or what the model loses with the reconstruction in its place, where the data are
    contexts (`ContextStream`): cross-entropy, or the divergence from its own predictions (Braun et al. 2024,
    https://arxiv.org/abs/2405.12241)."""
    reconstruction_weight: float | None = None
    """Weight of the error; by default 1, and 0 with loss_fn ce or kl."""
    auxk_alpha: float = 0.0
    """Weight of the auxiliary loss of dead latents."""
    k_aux: int | None = None
    """Dead latents that the auxiliary loss uses for a token; by default half the width of the activations."""
    auxk_every: int = 1
    """The auxiliary loss looks at every n-th token of a batch. With 2 it costs half, and revives fewer latents
    (docs/defaults.md)."""
    use_ghost_grads: bool = False
    """Whether dead latents get ghost gradients."""
    pre_act_loss_coefficient: float = 0.0
    """Weight of the pull on dead latents' pre-activations."""
    resample_steps: int | None = None
    """Every so many steps dead latents are drawn anew, and the learning rate rises again; None for never."""
    dead_feature_threshold: float = 10_000_000
    """Tokens without firing after which a latent is dead. Below 1 it is a frequency: a latent that fires on a smaller share of
    `feature_sampling_window` tokens is dead (as SAELens means it)."""
    dead_feature_window: int | None = None
    """Tokens without firing after which a latent is dead, beside a threshold that is a frequency."""
    feature_sampling_window: int = 2_000_000
    """Tokens on which frequencies are taken."""

    @property
    def needs_predictions(self) -> bool:
        return self.loss_fn != "reconstruction"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auxk_every < 1:
            raise ConfigError(f"Got auxk_every={self.auxk_every}; it must be at least 1, which is every token.")
        windows = (self.dead_feature_threshold, self.dead_feature_window or 1, self.feature_sampling_window)
        if min(windows) <= 0:
            raise ConfigError(
                f"Got dead_feature_threshold={self.dead_feature_threshold}, dead_feature_window={self.dead_feature_window} and "
                f"feature_sampling_window={self.feature_sampling_window}; they must be positive."
            )
        if self.resample_steps is not None and self.resample_steps < 1:
            raise ConfigError(f"Got resample_steps={self.resample_steps}; it must be at least 1, or None for never.")
        if self.loss_fn != "reconstruction" and self.micro_acc_steps > 1:
            raise ConfigError(
                f"loss_fn={self.loss_fn!r} takes the model through whole contexts; micro_acc_steps={self.micro_acc_steps} would cut "
                "them. Give fewer contexts in a batch, and gather gradients by grad_acc_steps."
            )
        wiring = WIRINGS[self.wiring or "autoencoder"]
        if self.dict_class is not None and self.wiring not in (None, "autoencoder"):
            raise ConfigError(
                f"Got dict_class={self.dict_class.__name__} with wiring={self.wiring!r}; the class is that of an autoencoder. "
                "Leave one of the two out."
            )
        if wiring.writes_others and self.activation_dim is not None and self.output_dims is None:
            # the width of the target is taken for that of the input where only one was given
            object.__setattr__(self, "output_dims", self.site_dims or (self.activation_dim,))
