"""Training of temporal dictionaries, and the published settings."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dictionary_learning.config import auto, setting
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries._initialization import CENTERS
from dictionary_learning.dictionaries._trainable import CenterName
from dictionary_learning.dictionaries.nonlinearities import ReLU, TopK
from dictionary_learning.errors import ConfigError
from dictionary_learning.experimental.temporal._dictionary import TemporalAutoencoder
from dictionary_learning.ops import Encoder
from dictionary_learning.trainers._base import TRAINERS, Trainer
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._config import OptimizationConfig
from dictionary_learning.trainers._losses import mean_sum, squared_error
from dictionary_learning.trainers._sae_trainer import copy_trained
from dictionary_learning.trainers._top_k_family import DEFAULT_K
from dictionary_learning.trainers.recipes import RECIPES

_SAMPLE = 2048
"""Tokens that the scale of the decoder is estimated on."""


def _default_k(c: Any) -> int | None:
    if c.sparsity_penalty:
        return None  # a rectifier, which the penalty makes sparse
    if isinstance(c.trained, TemporalAutoencoder) and c.trained.k is None:
        raise ConfigError(
            "The dictionary to start from has a rectifier, which nothing would make sparse. Give sparsity_penalty, or "
            "k."
        )
    return getattr(c.trained, "k", None) or DEFAULT_K


def _of_trained(name: str, default: Any) -> Any:
    """Returns a rule: the option of the dictionary to start from, or else a default."""

    def rule(c: Any) -> Any:
        return getattr(c.trained, name) if isinstance(c.trained, TemporalAutoencoder) else default(c)

    return rule


@TRAINERS.register("temporal")
class TemporalTrainer(Trainer):
    """Trains a `TemporalAutoencoder` on contexts.

    loss = E|x - x_hat|^2 / E|x - mean|^2 + sparsity_penalty * E[sum of novel latents]

    Needs contexts: `trainSAE(ContextStream(text, model, site, predict=False), ...)`. A batch
    without lengths is one context. Initial decoder rows have one norm, at which the novel part
    alone reconstructs best; attention is initialized as in the published code.
    Lubana et al. 2025, https://arxiv.org/abs/2511.01836.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(OptimizationConfig):
        """Settings of temporal dictionaries."""

        reads_contexts: ClassVar[bool] = True

        k: int | None = auto(_default_k, at_least=1)
        """Novel latents per token; by default 32, or those of `finetune`. With a penalty and no k,
        a rectifier is used instead."""
        sparsity_penalty: float = setting(0.0, at_least=0)
        """Weight of the sum of novel latents."""
        n_heads: int = auto(_of_trained("n_heads", lambda c: 4), at_least=1)
        """Heads of each attention layer, which share the latents evenly; by default 4."""
        n_layers: int = auto(_of_trained("n_layers", lambda c: 1), at_least=0)
        """Layers of attention; by default 1."""
        bottleneck_factor: int = auto(
            _of_trained("bottleneck_factor", lambda c: math.gcd(64, c.dict_size // c.n_heads)), at_least=1
        )
        """How many times narrower keys and queries are than latents; by default 64, or what divides
        the latents."""
        tied: bool = auto(_of_trained("tied", lambda c: True))
        """Whether the encoder is the decoder; by default True."""
        lr: float = auto(lambda c: 0.03, at_least=0)
        """Learning rate; by default 0.03, for rows whose entries are about 1. The published runs
        have 1e-3, in 200,000 steps. In 80 steps on SmolLM2-135M FVU fell to .64 at 3e-3, .38 at
        0.03 and .32 at 0.1."""
        attention_lr_factor: float = setting(1 / 30, at_least=0)
        """Factor of the learning rate for attention, which then has the published one."""
        beta2: float = setting(0.95, at_least=0, below=1)
        """Adam's decay of the mean squared gradient."""
        max_grad_norm: float | None = setting(1.0, above=0)
        """Gradients are scaled down to this common norm; None for no limit."""
        b_dec_init_method: CenterName = "geometric_median"
        """Initial b_dec: geometric_median, mean or zeros."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.micro_acc_steps > 1:
                raise ConfigError(
                    f"Temporal dictionaries read whole contexts, which micro_acc_steps={self.micro_acc_steps} would "
                    "cut. Give fewer contexts per batch, and use grad_acc_steps."
                )

    settings: Config
    dictionary: TemporalAutoencoder

    def build_dictionary(self, trained: Dictionary | None) -> TemporalAutoencoder:
        settings, width, generator = self.settings, self.run.activation_dim, self.generator
        if trained is None:
            options = {name: getattr(settings, name) for name in ("n_heads", "n_layers", "bottleneck_factor", "tied")}
            made = TemporalAutoencoder(width, settings.dict_size, settings.k, **options, generator=generator)
            return made.to(self.device)
        if not isinstance(trained, TemporalAutoencoder):
            raise ConfigError(
                f"The temporal trainer got a {type(trained).__name__} to start from; it trains TemporalAutoencoder "
                "only. Use the trainer of its nonlinearity."
            )
        trained.check_sites((width,), (width,))
        nonlinearity = ReLU() if settings.k is None else TopK(settings.k)
        dictionary = copy_trained(trained, nonlinearity, settings, generator)
        assert isinstance(dictionary, TemporalAutoencoder)
        return dictionary.to(self.device)

    def initialize_dictionary(self, x: Tensor, y: Tensor) -> None:
        variance = (y - y.mean(0)).pow(2).sum(-1).mean()
        self.loss_scale = torch.where(variance > 0, 1 / variance, 1.0)  # constant targets have no variance
        if self.settings.finetune is None:
            self.dictionary.b_dec.copy_(CENTERS[self.settings.b_dec_init_method](y))
            self.dictionary.scale_decoder_(x[:_SAMPLE])

    def objective(self, batch: Batch) -> Loss:
        lengths = torch.tensor([len(batch.x)]) if batch.lengths is None else batch.lengths  # (contexts,)
        with torch.autocast(self.device.type, enabled=False):
            reconstruction = self.dictionary.reconstruct_contexts(batch.x, lengths)
        error = squared_error(reconstruction.outputs, batch.x)
        total, terms = self.loss_scale * error, {"l2_loss": error}
        if self.settings.sparsity_penalty:
            terms["sparsity_loss"] = mean_sum(reconstruction.latents)
            total = total + self.settings.sparsity_penalty * terms["sparsity_loss"]
        return Loss(total, error, terms, reconstruction)

    def with_auxiliary_losses(self, loss: Loss, batch: Batch) -> Loss:
        return loss

    def unit_row_names(self) -> set[str]:
        return set()  # decoder rows have the norm that their scale needs

    def lr_factors(self) -> Mapping[str, float]:
        return {"weight": self.settings.attention_lr_factor, "bias": self.settings.attention_lr_factor}

    def encoders(self) -> list[Encoder]:
        return []  # a context's latents are no product of its rows alone


@RECIPES.register("lubana_2025")
def lubana_2025(**changes: Any) -> TemporalTrainer.Config:
    """Returns the settings of the published code, except warm-up and weight decay.

    Lubana et al. 2025, https://arxiv.org/abs/2511.01836. The k is that for Gemma 2 2B.
    """
    settings: dict[str, Any] = {"k": 192, "bottleneck_factor": 1, "normalize": "unit_mean_square"}
    if not {"dict_size", "finetune"} & changes.keys():
        settings["expansion_factor"] = 4
    optimizer = {"lr": 1e-3, "attention_lr_factor": 1.0, "schedule": "constant"}
    return TemporalTrainer.Config.from_dict({**settings, **optimizer, **changes})
