"""What trainers share that keep a set number of latents: objective, auxiliary loss, threshold, recipe."""

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries import Reconstruction, SparseAutoencoder, geometric_median
from dictionary_learning.dictionaries.nonlinearities import KeepsSetNumber
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, fired
from dictionary_learning.ops.joint import Encoder
from dictionary_learning.ops.precision import full
from dictionary_learning.trainers.base import Loss, SAETrainer
from dictionary_learning.trainers.dead_latents import DeadLatents
from dictionary_learning.trainers.row_adam import RowAdam
from dictionary_learning.trainers.schedules import WarmupDecay, annealed_k

_LR, _LR_WIDTH = 4.5e-3, 2**14
_SCALE_SAMPLE = 2048
"""Rows that the scale of the encoder is found on."""


class Part(NamedTuple):
    """A reconstruction that is part of the loss."""

    name: str
    weight: float
    latents: SparseLatents


class SelectingTrainer(SAETrainer):
    """Trains an autoencoder that keeps a set number of latents, of each token or of a batch.

    loss = |x - x_hat|^2 / E|x - mean|^2 + auxk_alpha * min(n_dead / k_aux, 1) * |e - e_hat|^2 / E|e - mean e|^2

    where e = x - x_hat, held constant, and e_hat is decoded from the k_aux largest dead latents of each token. Decoder rows have
    unit norm after each step, and their gradients no part along them before it. b_dec begins as the geometric median.
    Gao et al. 2024, https://arxiv.org/abs/2406.04093: sections 2.1, 2.3, A.1, A.2.
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(SAETrainer.Config):
        """Settings of trainers that keep a set number of latents."""

        k: int = 32
        """Latents that a token may use."""
        lr: float | None = None
        """Learning rate; by default 4.5e-3 / sqrt(dict_size / 2^14): the paper's law in the width, with a factor measured for
        these settings (docs/defaults.md)."""
        encoder_lr_factor: float = 0.5
        """What the learning rate is multiplied by for W_enc."""
        decoder_lr_factor: float = 2.0
        """What the learning rate is multiplied by for W_dec, whose rows turn without growing."""
        beta1: float = 0.8
        """Adam's decay of the mean gradient."""
        beta2: float = 0.95
        """Adam's decay of the mean squared gradient: a latent that fires again after long is not thrown far."""
        scale_encoder: bool = True
        """Whether the encoder begins at the scale at which the first reconstruction is best, instead of with unit rows."""
        eps: float = 6.25e-10
        """Adam's floor; gradients of rare latents are small (Gao et al. 2024, A.1)."""
        warmup_steps: int | None = None
        """Steps over which the learning rate rises; by default a tenth of the run, at most 1,000."""
        decay_start: int | None = None
        """The step from which the learning rate falls to 0; by default after 20% of the run, or after the warm-up."""
        max_grad_norm: float | None = 1e-3
        """Gradients are scaled down to this common norm, where the loss is a share of the variance; so low that it makes them
        all equally long. None for no limit."""
        auxk_alpha: float = 1 / 32
        """Weight of the auxiliary loss."""
        k_aux: int | None = None
        """Dead latents that the auxiliary loss uses for a token; by default half the width of the activations."""
        auxk_every: int = 1
        """The auxiliary loss looks at every n-th token of a batch. With 2 it costs half, and revives fewer latents
        (docs/defaults.md)."""
        dead_feature_threshold: int = 10_000_000
        """Tokens without firing after which a latent is dead."""
        k_anneal_steps: int | None = None
        """Steps over which k falls to its value from the width of the activations; None to begin with it."""
        threshold_beta: float = 0.999
        """Decay of the moving average that learns the threshold for inference."""
        threshold_start_step: int = 1000
        """The step from which that average is kept; before it, the threshold is the last batch's."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.auxk_every < 1:
                raise ConfigError(f"Got auxk_every={self.auxk_every}; it must be at least 1, which is every token.")
            if self.k < 1 or (self.dict_size is not None and self.k > self.dict_size):
                raise ConfigError(
                    f"A dictionary cannot keep k={self.k} of dict_size={self.dict_size} latents; lower k or raise dict_size."
                )

    dictionary: SparseAutoencoder
    optimizer: RowAdam
    aliases: ClassVar = {"top_k_aux": "k_aux"}

    def __init__(self, config: Config | None = None, /, **options: Any):
        super().__init__(config, **options)
        settings = self.settings
        dim, size = self.activation_dim, self.dict_size
        self.lr = settings.lr if settings.lr is not None else _LR / (size / _LR_WIDTH) ** 0.5
        warmup = min(1000, self.steps // 10) if settings.warmup_steps is None else settings.warmup_steps
        decay = max(self.steps // 5, min(warmup, self.steps)) if settings.decay_start is None else settings.decay_start
        warmup = min(warmup, decay) if settings.warmup_steps is None else warmup
        self.schedule = WarmupDecay(self.steps, warmup, decay)
        self.k_aux = settings.k_aux or max(dim // 2, 1)
        # what is saved says what was used, not that a default was
        self.config_values = settings.replace(lr=self.lr, warmup_steps=warmup, decay_start=decay, k_aux=self.k_aux)
        self.dead = DeadLatents(size, settings.dead_feature_threshold, self.device)
        self.loss_scale = torch.ones((), device=self.device)
        """One over the variance of the activations, estimated once, so that the weights of the terms mean the same everywhere."""

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    @property
    def k(self) -> int:
        """How many latents are kept at the current step."""
        settings = self.settings
        return annealed_k(
            settings.k, max(self.dictionary.activation_dim, settings.k), self.step, settings.k_anneal_steps
        )

    @abstractmethod
    def parts(self, x: Float[Tensor, "batch activation_dim"]) -> list[Part]:
        """Returns the reconstructions that are part of the loss; the first is the dictionary's."""

    @abstractmethod
    def lowest(self, latents: SparseLatents) -> Float[Tensor, ""]:
        """Returns the least value that a latent of the batch was kept with; infinite if none is positive."""

    def build_optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        factors = {"W_enc": settings.encoder_lr_factor, "W_dec": settings.decoder_lr_factor}
        groups = [
            {"params": [parameter], "lr_factor": factors.get(name, 1.0), "unit_rows": name == "W_dec"}
            for name, parameter in self.dictionary.named_parameters()
        ]
        betas = (settings.beta1, settings.beta2)
        return RowAdam(groups, betas=betas, eps=settings.eps, max_grad_norm=settings.max_grad_norm)

    def encoders(self) -> list[Encoder]:
        """Returns the dictionary's encoder."""
        return [Encoder(self.dictionary.W_enc, self.dictionary.b_enc, self.dictionary.b_dec)]

    def learning_rate(self, step: int) -> float:
        return self.lr * self.schedule(step)

    def prepare(self, x: Float[Tensor, "n activation_dim"]) -> None:
        self.dictionary.b_dec.copy_(geometric_median(x))
        variance = (x - x.mean(0)).pow(2).sum(-1).mean()
        self.loss_scale = torch.where(variance > 0, 1 / variance, 1.0)  # a constant input has nothing to explain
        if self.settings.scale_encoder:
            self._scale_encoder(x)

    def loss(self, x: Float[Tensor, "batch activation_dim"]) -> Loss:
        x = full(x)  # errors are squared and summed: in less than float32 they would overflow or vanish
        settings, parts = self.settings, self.parts(x)
        outputs = [self.dictionary.decode_sparse(part.latents) for part in parts]
        terms = {part.name: (x_hat - x).pow(2).sum(-1).mean() for part, x_hat in zip(parts, outputs, strict=True)}
        total = self.loss_scale * sum(part.weight * terms[part.name] for part in parts)
        if settings.auxk_alpha and self.dead.indices is not None:
            some = slice(None, None, settings.auxk_every)
            terms["auxk_loss"] = self._auxk_loss(x[some], (x[some] - outputs[0][some]).detach(), self.dead.indices)
            total = total + settings.auxk_alpha * terms["auxk_loss"]
        return Loss(total, terms, Reconstruction(outputs[0], parts[0].latents))

    def observe(self, loss: Loss, n_tokens: int) -> None:
        latents = loss.reconstruction.latents
        assert isinstance(latents, SparseLatents)
        self.dead.observe(fired(latents), n_tokens)
        self._learn_threshold(self.lowest(latents))

    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        figures = super().metrics()
        if figures:
            figures["dead_features"] = self.dead.mask.sum()
            figures["effective_l0"] = torch.tensor(self.k)
            figures["skipped_steps"] = self.optimizer.n_skipped
        return figures

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "dead": self.dead.state_dict(), "loss_scale": self.loss_scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.dead.load_state_dict(state["dead"])
        self.loss_scale = state["loss_scale"].to(self.device)

    def _scale_encoder(self, x: Tensor) -> None:
        """Multiplies the encoder by the s that minimizes |x - b_dec - s y|^2, with y what is decoded at first.

        With many latents for each direction, the k largest overlap, and unit rows overshoot.
        """
        dictionary = self.dictionary
        x = x[:_SCALE_SAMPLE]
        decoded = dictionary.decode_sparse(dictionary.encode_sparse(x)) - dictionary.b_dec
        length = decoded.pow(2).sum()
        if length > 0:
            dictionary.W_enc.mul_(((x - dictionary.b_dec) * decoded).sum() / length)

    def _auxk_loss(self, x: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        """Returns how badly dead latents predict the residual, scaled down while they are few."""
        dictionary = self.dictionary
        n_kept = min(self.k_aux, len(dead))
        # b_dec is no part of what dead latents are to explain, so it gets no gradient from here
        weights = (ops.take_rows(weight, dead) for weight in (dictionary.W_enc, dictionary.b_enc, dictionary.W_dec))
        W_enc, b_enc, W_dec = weights
        latents = ops.topk_encode(x, W_enc, b_enc, n_kept, center=dictionary.b_dec.detach())
        predicted = ops.sparse_decode(latents, W_dec)
        variance = (residual - residual.mean(0)).pow(2).sum(-1).mean()
        loss = (predicted - residual).pow(2).sum(-1).mean() / variance.clamp_min(torch.finfo(variance.dtype).tiny)
        return loss.nan_to_num(0.0) * min(len(dead) / self.k_aux, 1.0)

    def _learn_threshold(self, lowest: Float[Tensor, ""]) -> None:
        """Moves the threshold toward the least value kept."""
        nonlinearity = self.dictionary.nonlinearity
        assert isinstance(nonlinearity, KeepsSetNumber)
        threshold = nonlinearity.threshold
        since = self.step - self.settings.threshold_start_step
        # the weight of an average over all steps since the start, until the decay sets in: no bias toward the first
        weight = max(1 - self.settings.threshold_beta, 1 / (since + 1)) if since >= 0 else 1.0
        moved = torch.lerp(threshold, lowest.to(threshold.dtype), weight)
        threshold.copy_(torch.where(lowest.isfinite(), moved, threshold))
