"""What all trainers of coders share: wiring, start, dead latents."""

import copy
import dataclasses
import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import (
    WIRINGS,
    DictionaryShape,
    InitConfig,
    Trainable,
    Wiring,
    same_parts,
    wiring_of,
)
from dictionary_learning.dictionaries.folding import fold_decoder_norm_
from dictionary_learning.dictionaries.initialization import set_decoder_
from dictionary_learning.dictionaries.named import AUTOENCODERS
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import firing_counts
from dictionary_learning.ops.encoder import Encoder
from dictionary_learning.trainers.batch import Batch, Loss
from dictionary_learning.trainers.coder_config import CoderConfig
from dictionary_learning.trainers.dead_latents import DeadLatents
from dictionary_learning.trainers.losses import auxk_loss, ghost_loss, pre_activation_loss
from dictionary_learning.trainers.optimized import OptimizedTrainer
from dictionary_learning.trainers.resampling import resample_
from dictionary_learning.trainers.schedules import Rewarm, Schedule

logger = logging.getLogger(__name__)

_DEAD_AFTER = 10_000_000
"""Tokens without firing after which a latent is dead, where the threshold is a frequency and no window is given (Gao et al. 2024)."""


class CoderTrainer(OptimizedTrainer):
    """Trains one dictionary of any wiring.

    A method is a nonlinearity and an objective; the rest is here. Dead latents, which have not fired for
    `dead_feature_threshold` tokens, are brought back by any of: AuxK (`auxk_alpha`), ghost gradients (`use_ghost_grads`), a pull on
    their pre-activations (`pre_act_loss_coefficient`), or being drawn anew (`resample_steps`).
    """

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(CoderConfig):
        """Settings that all methods have."""

    aliases: ClassVar = {
        **OptimizedTrainer.aliases,
        "top_k_aux": "k_aux",
        "normalize_sae_decoder": "unit_norm_decoder",
        "decoder_heuristic_init_norm": "decoder_init_norm",
    }
    subtracts_b_dec: ClassVar[bool] = True
    """Whether the method's autoencoder subtracts b_dec before encoding."""

    dictionary: Trainable

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        settings = self.settings
        self.k_aux = settings.k_aux or max(self.dictionary.output_dim // 2, 1)
        self.config_values = self.settings.replace(k_aux=self.k_aux)
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

    def fill_in(self, trained: Trainable | None) -> None:
        """Fills in settings that were not given, as those of the trained dictionary to begin with, if there is one."""

    def named_options(self) -> dict[str, Any]:
        """Returns the arguments of the method's named autoencoder beyond the sizes."""
        return self.nonlinearity().options()

    def named_class(self) -> type:
        """Returns the class of the method's autoencoder."""
        return AUTOENCODERS[type(self.nonlinearity())]

    def build(self) -> Trainable:
        if self.settings.finetune is not None:
            return self._continued()
        if self.settings.wiring is None:
            self.config_values = self.settings.replace(wiring="autoencoder")
        self.fill_in(None)
        settings = self.settings
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
            shape = DictionaryShape(inputs, settings.output_dims or inputs, self.dict_size, settings.n_heads)
            dictionary = self.wiring.build(shape, self.nonlinearity(), self.generator, **options)
        norm = 1.0 if settings.decoder_init_norm is None else settings.decoder_init_norm
        for part in dictionary.coders():
            tied = settings.init_encoder_as_decoder_transpose and not part.coder.is_tied
            W_enc = part.coder.W_enc if tied else None
            set_decoder_(
                part.coder.W_dec, W_enc, norm=norm, orthogonal=settings.orthogonal_init, generator=self.generator
            )
        return dictionary

    def _continued(self) -> Trainable:
        """Returns a copy of a trained dictionary, with this method's nonlinearity, and takes its wiring over."""
        trained, asked = self.trained(), self.settings.wiring
        own = wiring_of(trained) if isinstance(trained, Trainable) else None
        if not isinstance(trained, Trainable) or own is None or not same_parts(own, asked or own):
            raise ConfigError(
                f"finetune got a {type(trained).__name__} with wiring={asked!r}, which builds another kind. Leave wiring out, "
                "or give the trainer that the dictionary is of."
            )
        wiring = asked or own
        inputs = self.settings.site_dims or (self.activation_dim,)
        # what it predicts is known from itself where the trainer is told of inputs only
        outputs = self.settings.output_dims or ((trained.output_dim,) if WIRINGS[wiring].writes_others else inputs)
        trained.check_sites(inputs, outputs)
        self.config_values = self.settings.replace(wiring=wiring, output_dims=outputs)
        self.fill_in(trained)
        dictionary = self.continued(self._with_unit_rows(trained), self.nonlinearity())
        assert isinstance(dictionary, Trainable)
        return dictionary

    def _with_unit_rows(self, trained: Trainable) -> Trainable:
        """Returns a dictionary of the same outputs whose rows have the unit norm that they will be kept at, or gives that up.

        Raises:
            ConfigError: unit rows were asked for, and cannot be had.
        """
        if not self.has_unit_rows or any(part.coder.is_tied for part in trained.coders()):
            return trained
        made = copy.deepcopy(trained).float()
        try:
            fold_decoder_norm_(made)
        except ConfigError:
            if self.settings.unit_norm_decoder:
                raise
            self.config_values = self.settings.replace(unit_norm_decoder=False)
            logger.info(
                "The dictionary to begin with compares latents whose rows have unequal norms: rows keep theirs."
            )
            return trained
        return made

    @property
    def wiring(self) -> Wiring:
        """What is read and written."""
        return WIRINGS[self.settings.wiring or "autoencoder"]

    @property
    def has_unit_rows(self) -> bool:
        """Whether decoder rows have unit norm after each step."""
        wanted = self.settings.unit_norm_decoder
        return self.wiring.unit_rows if wanted is None else wanted

    def lr_factors(self) -> dict[str, float]:
        return {"W_enc": self.settings.encoder_lr_factor, "W_dec": self.settings.decoder_lr_factor}

    def build_schedule(self) -> Schedule:
        schedule, every = super().build_schedule(), self.settings.resample_steps
        if every is None:
            return schedule
        return Rewarm(schedule, every, max(min(self.settings.warmup_steps or 0, every), 1))

    def encoders(self) -> list[Encoder]:
        """Returns the dictionary's encoders, as far as they are applied to the activations as they are."""
        return self.dictionary.encoders()

    def prepare(self, x: Float[Tensor, "n activation_dim"], y: Float[Tensor, "n output_dim"]) -> None:
        settings = self.settings
        if settings.finetune is not None:
            return  # it has begun long ago
        fit = self.wiring.writes_others and settings.decoder_init_norm is None
        self.dictionary.start(x, y, InitConfig(settings.b_dec_init_method, settings.scale_encoder, fit, self.generator))
        if self.has_unit_rows and fit:
            for part in self.dictionary.coders():
                part.coder.W_dec.copy_(torch.nn.functional.normalize(part.coder.W_dec, dim=1))

    def objective(self, batch: Batch) -> Loss:
        settings, loss = self.settings, self.reconstruct(batch)
        if settings.loss_fn != "reconstruction":
            if batch.model_loss_fn is None:
                raise ConfigError(
                    f"loss_fn={settings.loss_fn!r} needs to know what the model loses, and these data are activations alone. "
                    "Train on a ContextStream."
                )
            lost = batch.model_loss_fn(loss.reconstruction.outputs)
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
        return figures

    def state_dict(self) -> dict[str, Any]:
        own = {"dead": self.dead.state_dict(), "loss_scale": self.loss_scale, "mean_error": self.mean_error}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.dead.load_state_dict(state["dead"])
        self.loss_scale = state["loss_scale"].to(self.device)
        self.mean_error = state["mean_error"].to(self.device)

    def unit_row_names(self) -> set[str]:
        names = [name for name, _ in self.dictionary.named_parameters()]
        tied = any(part.coder.is_tied for part in self.dictionary.coders())
        return {n for n in names if n.rpartition(".")[2] == "W_dec"} if self.has_unit_rows or tied else set()
