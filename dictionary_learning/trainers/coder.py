"""What all trainers of dictionaries share: wiring, start, optimizer, schedules, dead latents."""

import copy
import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import WIRINGS, Coder, Dictionary, Shape, Start, Trainable, load_dictionary
from dictionary_learning.dictionaries.conversion import finetuned
from dictionary_learning.dictionaries.initialization import set_decoder_
from dictionary_learning.dictionaries.named import AUTOENCODERS
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import firing_counts
from dictionary_learning.ops.joint import Encoder
from dictionary_learning.trainers.averaging import WeightAverage
from dictionary_learning.trainers.base import SAETrainer
from dictionary_learning.trainers.batch import Batch, Loss
from dictionary_learning.trainers.coder_config import CoderConfig
from dictionary_learning.trainers.dead_latents import DeadLatents
from dictionary_learning.trainers.losses import auxk_loss, ghost_loss, pre_activation_loss
from dictionary_learning.trainers.optimizers import build_optimizer
from dictionary_learning.trainers.resampling import resample_
from dictionary_learning.trainers.schedules import SCHEDULES, Rewarm, Schedule

_DEAD_AFTER = 10_000_000
"""Tokens without firing after which a latent is dead, where the threshold is a frequency and no window is given (Gao et al. 2024)."""


class CoderTrainer(SAETrainer):
    """Trains one dictionary of any wiring.

    A method is a nonlinearity and an objective; the rest is here. Dead latents, which have not fired for
    `dead_feature_threshold` tokens, are brought back by any of: AuxK (`auxk_alpha`), ghost gradients (`use_ghost_grads`), a pull on
    their pre-activations (`pre_act_loss_coefficient`), or being drawn anew (`resample_steps`).
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(CoderConfig):
        """Settings that all methods have."""

    aliases: ClassVar = {
        "top_k_aux": "k_aux",
        "lr_scheduler_name": "schedule",
        "lr_warm_up_steps": "warmup_steps",
        "normalize_sae_decoder": "unit_norm_decoder",
        "normalize_activations": "normalize",
        "adam_beta1": "beta1",
        "adam_beta2": "beta2",
        "decoder_heuristic_init_norm": "decoder_init_norm",
    }
    default_lr: ClassVar[float] = 1e-3
    subtracts_b_dec: ClassVar[bool] = True
    """Whether the method's autoencoder subtracts b_dec before encoding."""

    dictionary: Trainable

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        settings = self.settings
        self.lr = settings.lr if settings.lr is not None else self.own_lr()
        self.schedule = self.build_schedule()
        self.k_aux = settings.k_aux or max(self.dictionary.output_dim // 2, 1)
        # what is saved says what was used, not that a default was
        self.config_values = self.settings.replace(lr=self.lr, k_aux=self.k_aux)
        threshold, window = settings.dead_feature_threshold, settings.dead_feature_window
        after = window if window is not None else threshold if threshold >= 1 else _DEAD_AFTER
        self.dead = DeadLatents(
            self.dictionary.dict_size,
            int(after),
            self.device,
            least_frequency=threshold if threshold < 1 else None,
            window=settings.feature_sampling_window,
        )
        self.loss_scale = torch.ones((), device=self.device)
        """What errors are multiplied by: one, or one over the variance of what is reconstructed, estimated once."""
        self.mean_error = torch.ones((), device=self.device)
        """E|x - x_hat|^2 of the last step: the auxiliary loss is a share of it."""
        self.average = None
        if settings.ema_decay is not None:
            self.average = WeightAverage(self.dictionary, settings.ema_decay, unit_rows=self._unit_row_names())

    @property
    def settings(self) -> Config:
        """The settings of this run."""
        assert isinstance(self.config_values, self.Config)
        return self.config_values

    @abstractmethod
    def nonlinearity(self) -> Nonlinearity:
        """Returns the method's nonlinearity, new."""

    @abstractmethod
    def reconstruct(self, batch: Batch) -> Loss:
        """Returns the loss of a batch without what brings dead latents back; changes nothing.

        Its reconstruction is the dictionary's, and its first term the squared error of that.
        """

    def own_lr(self) -> float:
        """Returns the method's learning rate, where none was given."""
        return self.default_lr

    def named_options(self) -> dict[str, Any]:
        """Returns the arguments of the method's named autoencoder beyond the sizes."""
        return self.nonlinearity().options()

    def named_class(self) -> type:
        """Returns the class of the method's autoencoder."""
        return AUTOENCODERS[type(self.nonlinearity())]

    def build(self) -> Trainable:
        settings, wiring = self.settings, WIRINGS[self.settings.wiring]
        if settings.finetune is not None:
            return self._continued(settings.finetune)
        options: dict[str, Any] = {}
        if settings.rank_by_norm is not None:
            options["rank_by_norm"] = settings.rank_by_norm
        if settings.wiring == "autoencoder":
            subtracts = self.subtracts_b_dec if settings.apply_b_dec_to_input is None else settings.apply_b_dec_to_input
            build: Callable[..., Trainable] = settings.dict_class or self.named_class()
            options |= {"apply_b_dec_to_input": subtracts, **self.named_options()}
            dictionary = build(self.activation_dim, self.dict_size, generator=self.generator, **options)
        else:
            inputs = settings.site_dims or (self.activation_dim,)
            shape = Shape(inputs, settings.output_dims or inputs, self.dict_size, settings.n_heads)
            dictionary = wiring.build(shape, self.nonlinearity(), self.generator, **options)
        norm = 1.0 if settings.decoder_init_norm is None else settings.decoder_init_norm
        for part in dictionary.coders():
            tied = settings.init_encoder_as_decoder_transpose and not part.coder.is_tied
            W_enc = part.coder.W_enc if tied else None
            set_decoder_(
                part.coder.W_dec, W_enc, norm=norm, orthogonal=settings.orthogonal_init, generator=self.generator
            )
        return dictionary

    def _continued(self, trained: Any) -> Trainable:
        """Returns a copy of a trained dictionary, with this method's nonlinearity and number of latents."""
        given = trained
        if not isinstance(trained, Dictionary):
            trained, _ = load_dictionary(trained)
        if not isinstance(trained, Coder):
            raise ConfigError(
                f"finetune got a {type(trained).__name__}; it takes a dictionary of one encoder and one decoder, or its folder."
            )
        wanted = self.nonlinearity()
        other = type(wanted) is not type(trained.nonlinearity) or wanted.options() != trained.nonlinearity.options()
        expansion = 1.0 if self._given_size is None else self._given_size / trained.dict_size
        dictionary = finetuned(
            trained, expansion=expansion, nonlinearity=wanted if other else None, generator=self.generator
        )
        if dictionary.activation_dim != self.activation_dim:
            raise ConfigError(
                f"finetune got a dictionary of width {dictionary.activation_dim}; the activations have width {self.activation_dim}. "
                "Give the site that it was trained on."
            )
        self.dict_size = dictionary.dict_size
        # what is saved names it, and does not hold it
        name = type(trained).__name__ if given is trained else str(given)
        self.config_values = self.settings.replace(dict_size=self.dict_size, finetune=name)
        return dictionary

    @property
    def has_unit_rows(self) -> bool:
        """Whether decoder rows have unit norm after each step."""
        wanted = self.settings.unit_norm_decoder
        return WIRINGS[self.settings.wiring].unit_rows if wanted is None else wanted

    def build_optimizer(self) -> torch.optim.Optimizer:
        settings = self.settings
        factors = self.lr_factors()
        unit = self._unit_row_names()
        groups = [
            {"params": [p], "lr_factor": factors.get(name.rpartition(".")[2], 1.0), "unit_rows": name in unit}
            for name, p in self.dictionary.named_parameters()
        ]
        return build_optimizer(
            settings.optimizer,
            groups,
            lr=settings.lr or 1e-3,  # each step sets its own
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            max_grad_norm=settings.max_grad_norm,
        )

    def lr_factors(self) -> dict[str, float]:
        """Returns what the learning rate is multiplied by for parameters, by the last part of their names."""
        return {"W_enc": self.settings.encoder_lr_factor, "W_dec": self.settings.decoder_lr_factor}

    def build_schedule(self) -> Schedule:
        """Returns the factor of the learning rate at each step, and saves with the settings what it was built with."""
        settings = self.settings
        warmup = min(1000, self.steps // 10) if settings.warmup_steps is None else settings.warmup_steps
        decay = self.steps if settings.decay_start is None else settings.decay_start
        if settings.warmup_steps is None:
            warmup = min(warmup, decay)
        self.config_values = settings.replace(warmup_steps=warmup, decay_start=decay)
        options = {"decay_start": decay} if settings.schedule == "linear" else {}
        schedule = SCHEDULES[settings.schedule](self.steps, warmup, **options)
        if settings.resample_steps is not None:
            return Rewarm(schedule, settings.resample_steps, max(min(warmup, settings.resample_steps), 1))
        return schedule

    def encoders(self) -> list[Encoder]:
        """Returns the dictionary's encoders, as far as they are applied to the activations as they are."""
        return self.dictionary.encoders()

    def learning_rate(self, step: int) -> float:
        return self.lr * self.schedule(step)

    def prepare(self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"]) -> None:
        settings = self.settings
        if settings.finetune is not None:
            return  # it has begun long ago
        fit = WIRINGS[settings.wiring].writes_others and settings.decoder_init_norm is None
        self.dictionary.start(x, y, Start(settings.b_dec_init_method, settings.scale_encoder, fit, self.generator))
        if self.has_unit_rows and fit:
            for part in self.dictionary.coders():
                part.coder.W_dec.copy_(torch.nn.functional.normalize(part.coder.W_dec, dim=1))

    def objective(self, batch: Batch) -> Loss:
        settings, loss = self.settings, self.reconstruct(batch)
        if settings.loss_fn != "reconstruction":
            if batch.downstream is None:
                raise ConfigError(
                    f"loss_fn={settings.loss_fn!r} needs to know what the model loses, and these data are activations alone. "
                    "Train on a ContextStream."
                )
            lost = batch.downstream(loss.reconstruction.outputs)
            loss = Loss(loss.total + lost[settings.loss_fn], {**loss.terms, **lost}, loss.reconstruction)
        dead = self.dead.indices
        if dead is None:
            return loss
        total, terms = loss.total, dict(loss.terms)
        dictionary, x = self.dictionary, batch.x
        if settings.auxk_alpha:
            some = slice(None, None, settings.auxk_every)
            residual = (batch.y[some].float() - loss.reconstruction.outputs[some]).detach()
            terms["auxk_loss"] = auxk_loss(dictionary, x[some], residual, dead, self.k_aux, self.mean_error)
            total = total + settings.auxk_alpha * terms["auxk_loss"] * self.auxk_unit()
        if settings.use_ghost_grads:
            residual = (batch.y.float() - loss.reconstruction.outputs).detach()
            error = next(iter(loss.terms.values()))
            terms["ghost_loss"] = ghost_loss(dictionary, x, residual, dead, error)
            total = total + self.loss_scale * terms["ghost_loss"]
        if settings.pre_act_loss_coefficient:
            terms["pre_act_loss"] = pre_activation_loss(dictionary, x, dead)
            total = total + settings.pre_act_loss_coefficient * terms["pre_act_loss"]
        return Loss(total, terms, loss.reconstruction)

    @property
    def error_weight(self) -> float:
        """Weight of the error in the loss."""
        given = self.settings.reconstruction_weight
        return given if given is not None else float(self.settings.loss_fn == "reconstruction")

    def auxk_unit(self) -> Tensor | float:
        """Returns what a share of the error weighs in the method's loss."""
        return 1.0

    def observe(self, gathered: list[tuple[Batch, Loss]]) -> None:
        shares = self.shares(gathered)
        firings = torch.stack([firing_counts(loss.reconstruction.latents) for _, loss in gathered]).sum(0)
        self.dead.observe(firings, sum(len(batch.x) for batch, _ in gathered))
        errors = [
            next(iter(loss.terms.values())).detach() * share for share, (_, loss) in zip(shares, gathered, strict=True)
        ]
        error = torch.stack(errors).sum()
        self.mean_error = torch.where(error.isfinite(), error.to(self.mean_error.dtype), self.mean_error)
        every = self.settings.resample_steps
        if every is not None and (self.step + 1) % every == 0 and self.dead.indices is not None:
            batch, loss = gathered[-1]
            error_of_each = (loss.reconstruction.outputs - batch.y.float()).pow(2).sum(-1)
            revived = resample_(
                self.dictionary, self.optimizer, batch, error_of_each, self.dead.indices, self.generator
            )
            self.dead.revive(revived)
        if self.average is not None:
            self.average.update()

    def metrics(self) -> dict[str, Float[Tensor, ""]]:
        figures = super().metrics()
        if figures:
            figures["dead_features"] = self.dead.mask.sum()
            skipped = getattr(self.optimizer, "n_skipped", None)
            if skipped is not None:
                figures["skipped_steps"] = skipped
        return figures

    def finished(self) -> Trainable:
        """Returns a copy of the dictionary as it is to be used: with averaged weights, where an average is kept."""
        if hasattr(self.optimizer, "eval"):
            self.optimizer.eval()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            if self.average is None:
                return copy.deepcopy(self.dictionary)
            with self.average.averaged():
                return copy.deepcopy(self.dictionary)
        finally:
            if hasattr(self.optimizer, "train"):
                self.optimizer.train()  # pyright: ignore[reportAttributeAccessIssue]

    def state_dict(self) -> dict[str, Any]:
        own = {"dead": self.dead.state_dict(), "loss_scale": self.loss_scale, "mean_error": self.mean_error}
        average = {"average": self.average.state_dict()} if self.average is not None else {}
        return {**super().state_dict(), **own, **average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.dead.load_state_dict(state["dead"])
        self.loss_scale = state["loss_scale"].to(self.device)
        self.mean_error = state["mean_error"].to(self.device)
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _unit_row_names(self) -> set[str]:
        names = [name for name, _ in self.dictionary.named_parameters()]
        tied = any(part.coder.is_tied for part in self.dictionary.coders())
        return {n for n in names if n.rpartition(".")[2] == "W_dec"} if self.has_unit_rows or tied else set()
