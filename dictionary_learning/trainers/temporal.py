"""What is new at a token, beside what the tokens before it predict."""

import dataclasses
import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import TemporalAutoencoder
from dictionary_learning.dictionaries.initialization import CENTERS
from dictionary_learning.dictionaries.trainable import CenterName
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops.precision import upcast
from dictionary_learning.trainers.base import TRAINERS
from dictionary_learning.trainers.batch import Batch, Loss
from dictionary_learning.trainers.losses import mean_sum, squared_error
from dictionary_learning.trainers.optimized import OptimizedTrainer
from dictionary_learning.trainers.selecting import DEFAULT_K

_SAMPLE = 2048
"""Tokens that the scale of the decoder is found on."""
_OF_DICTIONARY = ("n_heads", "n_layers", "bottleneck_factor", "tied")
"""Settings that a dictionary brings along beside k."""


@TRAINERS.register("temporal")
class TemporalTrainer(OptimizedTrainer):
    """Trains a `TemporalAutoencoder` on contexts.

    loss = E|x - x_hat|^2 / E|x - mean|^2 + sparsity_penalty * E[sum of what is new]

    Needs contexts: `trainSAE(ContextStream(text, model, site, predict=False), ...)`; a batch without lengths is one context. The decoder
    begins with rows of one norm, so large that what is new by itself reconstructs best, attention as in the published code.
    Lubana et al. 2025, https://arxiv.org/abs/2511.01836.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(OptimizedTrainer.Config):
        """Settings of temporal dictionaries."""

        k: int | None = None
        """Latents of a token that may be new; by default 32, or as many as in the dictionary to begin with. With a penalty and no k
        a rectifier takes the place of choosing."""
        sparsity_penalty: float = 0.0
        """Weight of the sum of the latents that are new."""
        n_heads: int = 4
        """Heads of each layer of attention; they share the latents out evenly."""
        n_layers: int = 1
        """Layers of attention."""
        bottleneck_factor: int | None = None
        """How many times narrower keys and queries are than latents; by default 64, or what the latents can be shared out to."""
        tied: bool = True
        """Whether the encoder is the decoder."""
        lr: float | None = None
        """Learning rate; by default 0.03, for rows whose entries are about 1. The published runs have 1e-3 throughout, in 200,000
        steps; in 80 steps on SmolLM2-135M FVU fell to .64 at 3e-3, .38 at 0.03 and .32 at 0.1."""
        attention_lr_factor: float = 1 / 30
        """What the learning rate is multiplied by for attention, so that it is the published one."""
        beta2: float = 0.95
        """Adam's decay of the mean squared gradient."""
        max_grad_norm: float | None = 1.0
        """Gradients are scaled down to this common norm; None for no limit."""
        b_dec_init_method: CenterName = "geometric_median"
        """Where b_dec begins: geometric_median, mean or zeros."""

        @property
        def needs_contexts(self) -> bool:
            return True

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.micro_acc_steps > 1:
                raise ConfigError(
                    f"Temporal dictionaries read whole contexts; micro_acc_steps={self.micro_acc_steps} would cut them. Give fewer "
                    "contexts in a batch, and gather gradients by grad_acc_steps."
                )

    default_lr: ClassVar = 0.03
    positional: ClassVar = ("steps", "activation_dim", "dict_size", "k", "layer", "lm_name")

    dictionary: TemporalAutoencoder

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.loss_scale = torch.ones((), device=self.device)
        """One over the variance of the activations."""

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    def build(self) -> TemporalAutoencoder:
        settings = self.settings
        if settings.finetune is not None:
            return self._continued()
        factor = settings.bottleneck_factor or math.gcd(64, self.dict_size // settings.n_heads)
        self.config_values = settings.replace(bottleneck_factor=factor)
        return TemporalAutoencoder(
            self.activation_dim,
            self.dict_size,
            self._k(None),
            n_heads=settings.n_heads,
            n_layers=settings.n_layers,
            bottleneck_factor=factor,
            tied=settings.tied,
            generator=self.generator,
        )

    def _continued(self) -> TemporalAutoencoder:
        """Returns a copy of a trained dictionary, and takes over what it brings along."""
        trained = self.trained()
        if not isinstance(trained, TemporalAutoencoder):
            raise ConfigError(
                f"The temporal trainer got a {type(trained).__name__} to begin with; it trains TemporalAutoencoder alone. "
                "Choose the trainer of its nonlinearity."
            )
        if trained.k is None and self.settings.k is None and not self.settings.sparsity_penalty:
            raise ConfigError(
                "The dictionary to begin with has a rectifier, which nothing would hold back. Give sparsity_penalty, or k."
            )
        trained.check_sites((self.activation_dim,), (self.activation_dim,))
        k = self._k(trained.k)
        dictionary = self.continued(trained, {"name": "relu"} if k is None else {"name": "top_k", "k": k})
        assert isinstance(dictionary, TemporalAutoencoder)
        own = {name: value for name, value in dictionary.options().items() if name in _OF_DICTIONARY}
        self.config_values = self.settings.replace(**own)
        return dictionary

    def _k(self, own: int | None) -> int | None:
        """Returns how many latents may be new, and keeps it with the settings; None for a rectifier."""
        if self.settings.k is None and not self.settings.sparsity_penalty:
            self.config_values = self.settings.replace(k=own or DEFAULT_K)
        return self.settings.k

    def lr_factors(self) -> dict[str, float]:
        return {"weight": self.settings.attention_lr_factor, "bias": self.settings.attention_lr_factor}

    def prepare(self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"]) -> None:
        variance = (y - y.mean(0)).pow(2).sum(-1).mean()
        self.loss_scale = torch.where(variance > 0, 1 / variance, 1.0)
        if self.settings.finetune is None:
            self.dictionary.b_dec.copy_(CENTERS[self.settings.b_dec_init_method](y))
            self.dictionary.scale_decoder_(x[:_SAMPLE])

    def objective(self, batch: Batch) -> Loss:
        x = upcast(batch.x)
        lengths = torch.tensor([len(x)]) if batch.lengths is None else batch.lengths
        with torch.autocast(self.device.type, enabled=False):
            reconstruction = self.dictionary.reconstruct_contexts(x, lengths)
        terms = {"l2_loss": squared_error(reconstruction.outputs, x)}
        total = self.loss_scale * terms["l2_loss"]
        if self.settings.sparsity_penalty:
            terms["sparsity_loss"] = mean_sum(reconstruction.latents)
            total = total + self.settings.sparsity_penalty * terms["sparsity_loss"]
        return Loss(total, terms, reconstruction)

    def observe(self, gathered: list[tuple[Batch, Loss]]) -> None:
        if self.average is not None:
            self.average.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "loss_scale": self.loss_scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.loss_scale = state["loss_scale"].to(self.device)
