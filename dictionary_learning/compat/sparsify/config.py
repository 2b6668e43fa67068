"""The settings of EleutherAI's sparsify, by their names and with its defaults."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, Literal

from dictionary_learning.errors import ConfigError


@dataclasses.dataclass
class SparseCoderConfig:
    """Settings of a sparse coder."""

    activation: Literal["topk", "groupmax"] = "topk"
    """The k largest latents, or the largest of each of k groups."""
    expansion_factor: int = 32
    """Latents for each dimension of the activations, where num_latents is 0."""
    normalize_decoder: bool = True
    """Whether decoder rows have unit norm; those of transcoders never do."""
    num_latents: int = 0
    """Latents; 0 for expansion_factor."""
    k: int = 32
    """Latents per token."""
    multi_topk: bool = False
    """Whether the 4k largest latents are decoded too."""
    skip_connection: bool = False
    """Whether the output has a part W_skip x."""
    transcode: bool = False
    """Whether a module's output is predicted from its input."""

    def __post_init__(self) -> None:
        if self.activation not in ("topk", "groupmax"):
            raise ConfigError(f"Got activation={self.activation!r}; it is topk or groupmax.")
        if self.k < 1 or self.num_latents < 0 or self.expansion_factor < 1:
            raise ConfigError(
                f"Got k={self.k}, num_latents={self.num_latents} and expansion_factor={self.expansion_factor}; k and "
                "expansion_factor are at least 1."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], drop_extra_fields: bool = False) -> "SparseCoderConfig":
        """Returns settings of plain data, as in `cfg.json`."""
        known = {field.name for field in dataclasses.fields(cls)}
        extra = [name for name in values if name not in known]
        if extra and not drop_extra_fields:
            raise ConfigError(f"Got {', '.join(extra)}; the settings are {', '.join(sorted(known))}.")
        return cls(**{name: value for name, value in values.items() if name in known})

    def size(self, width: int) -> int:
        """Returns the number of latents for activations of a width."""
        return self.num_latents or width * self.expansion_factor


SaeConfig = SparseCoderConfig
TranscoderConfig = functools.partial(SparseCoderConfig, transcode=True)


@dataclasses.dataclass
class TrainConfig:
    """Settings of a run."""

    sae: SparseCoderConfig = dataclasses.field(default_factory=SparseCoderConfig)
    batch_size: int = 32
    """Sequences in a batch, on each process."""
    grad_acc_steps: int = 1
    """Batches for one step."""
    micro_acc_steps: int = 1
    """Parts that a batch is encoded in."""
    loss_fn: Literal["fvu", "ce", "kl"] = "fvu"
    """The error as a share of the variance, or the model's loss with reconstructions in place."""
    optimizer: Literal["signum", "adam", "muon"] = "signum"
    """Schedule-free Signum, Adam or Muon."""
    lr: float | None = None
    """Learning rate; None for the law in the number of latents."""
    lr_warmup_steps: int = 1000
    """Steps of warm-up, with adam."""
    k_decay_steps: int = 0
    """Batches over which k decays, from ten times the width."""
    auxk_alpha: float = 0.0
    """Weight of the loss of dead latents."""
    dead_feature_threshold: int = 10_000_000
    """Tokens without firing after which a latent is dead."""
    exclude_tokens: list[int] = dataclasses.field(default_factory=list)
    """Token ids that are not trained on."""
    hookpoints: list[str] = dataclasses.field(default_factory=list)
    """Modules, as patterns; the prefix of the model may be left out."""
    init_seeds: list[int] = dataclasses.field(default_factory=lambda: [0])
    """Seeds of the initial weights; a coder for each."""
    layers: list[int] = dataclasses.field(default_factory=list)
    """Numbers of layers; all by default."""
    layer_stride: int = 1
    """Only every n-th hookpoint."""
    distribute_modules: bool = False
    """Whether each process has some of the coders, instead of all."""
    save_every: int = 1000
    """Steps between two checkpoints."""
    save_best: bool = False
    """Whether the best coders so far are kept."""
    finetune: str | None = None
    """A run, or a repository, to start from."""
    log_to_wandb: bool = True
    """Whether to log to Weights & Biases, where it is installed."""
    run_name: str | None = None
    """The folder of the run, in save_dir; "unnamed" by default."""
    wandb_log_frequency: int = 1
    """Steps between two logs."""
    save_dir: str = "checkpoints"
    """The folder of runs."""

    def __post_init__(self) -> None:
        if self.layers and self.layer_stride != 1:
            raise ConfigError("Got layers and layer_stride; give one of them.")
        if self.hookpoints and self.layers:
            raise ConfigError("Got hookpoints and layers; give one of them.")
        if not self.init_seeds:
            raise ConfigError("Got no init_seeds; give at least one.")
        if self.loss_fn != "fvu" and self.distribute_modules:
            raise ConfigError(
                f"distribute_modules=True with loss_fn={self.loss_fn!r}: the model's loss needs all coders on each "
                "process. Leave one of them out."
            )
        if self.loss_fn != "fvu" and self.micro_acc_steps > 1:
            raise ConfigError(f"micro_acc_steps with loss_fn={self.loss_fn!r} would cut contexts; use grad_acc_steps.")
        if self.sae.skip_connection and not self.sae.transcode:
            raise ConfigError(
                "skip_connection=True without transcode=True: W_skip x alone is the activations, and no latent would "
                "be needed. Train a transcoder."
            )
        if self.sae.multi_topk and self.sae.activation == "groupmax":
            raise ConfigError("multi_topk=True with activation='groupmax'; only topk has wider reconstructions.")

    @property
    def folder(self) -> str:
        """The folder of the run."""
        return os.path.join(self.save_dir, self.run_name or "unnamed")
