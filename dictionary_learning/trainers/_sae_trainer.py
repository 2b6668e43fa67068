"""The base of every method that trains an encoder and a decoder around a nonlinearity."""

import contextlib
import copy
import inspect
import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import (
    WIRINGS,
    Coder,
    Dictionary,
    DictionaryShape,
    InitConfig,
    SkipAutoencoder,
    SparseAutoencoder,
    Trainable,
    autoencoder_class,
    expand_or_convert,
    have_same_parts,
    wiring_of,
)
from dictionary_learning.dictionaries._folding import fold_rounded_norm_
from dictionary_learning.dictionaries._initialization import set_decoder_, unit_rows
from dictionary_learning.dictionaries._trainable import has_own_method
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops import Encoder
from dictionary_learning.trainers._base import Trainer
from dictionary_learning.trainers._batch import Batch, Loss
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._config import OptimizationConfig
from dictionary_learning.trainers._dead_latents import DeadLatents, Revival
from dictionary_learning.trainers._run_info import RunInfo
from dictionary_learning.trainers._sae_config import TrainerConfig

logger = logging.getLogger(__name__)

_LARGE_MEAN = 1.0
"""Squared norm of the mean, in units of the variance, that is too large for a b_dec of zeros."""


class SAETrainer(Trainer):
    """Trains one dictionary of any wiring. Subclass it to add a method.

    A method has a nonlinearity and an objective, and may update state after each step; the settings
    are those of its `Config`. Everything else is here: wiring, initialization, the end-to-end loss,
    and dead latents, which have not fired for `dead_feature_threshold` tokens and are revived by
    AuxK (`auxk_alpha`), ghost gradients (`use_ghost_grads`), a pull on their pre-activations
    (`pre_act_loss_coefficient`) or resampling (`resample_steps`).
    """

    class Config(TrainerConfig):
        """Settings of every method."""

    settings: TrainerConfig
    dictionary: Trainable

    @component
    def revival(self) -> Revival:
        """The dead latents."""
        return Revival(self.settings, self.dictionary, self.optimizer, self.generator)

    @abstractmethod
    def nonlinearity(self) -> Nonlinearity:
        """Returns a new nonlinearity of the method."""

    def build_dictionary(self, trained: Dictionary | None) -> Trainable:
        nonlinearity, settings = self.nonlinearity(), self.settings
        if not isinstance(nonlinearity, Nonlinearity):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(
                f"{type(self).__name__}.nonlinearity returned {nonlinearity!r}; it returns a Nonlinearity, as TopK(k)."
            )
        facts = (nonlinearity, settings, self.run, self.generator)
        dictionary = _new_dictionary(*facts) if trained is None else _trained_dictionary(trained, *facts)
        # a method with options of its own makes its class of what was trained
        made = type(dictionary) if trained is None or not settings.autoencoder_options() else settings.autoencoder_class
        first = next(dictionary.coders()).coder.nonlinearity
        if settings.dict_class not in (None, made) or type(first) is not type(nonlinearity):
            of = "" if trained is None else f" of a {type(trained).__name__}"
            raise ConfigError(
                f"Got dict_class={(settings.dict_class or type(dictionary)).__name__}, which is not what "
                f"{type(self).__name__} makes with {type(nonlinearity).__name__}{of}. Leave dict_class out, or use the "
                "trainer of its nonlinearity."
            )
        return dictionary.to(self.device)

    def initialize_dictionary(self, x: Tensor, y: Tensor) -> None:
        settings = self.settings
        if settings.divides_by_variance:
            variance = (y - y.mean(0)).pow(2).sum(-1).mean()
            self.loss_scale = torch.where(variance > 0, 1 / variance, 1.0)  # constant targets have no variance
        if settings.finetune is not None:
            return  # its biases were trained
        if settings.b_dec_init_method == "zeros":
            _warn_of_mean(y)
        # where another site is written, the decoder is fitted, unless its norm was asked for
        fit = WIRINGS[settings.wiring].writes_others and settings.decoder_init_norm is None
        self.dictionary.initialize_from_data(
            x,
            y,
            InitConfig(
                settings.b_dec_init_method,
                settings.scale_encoder,
                fit,
                self.generator,
                settings.decoder_init_data_share,
                self.selecting,
            ),
        )
        if settings.unit_norm_decoder and fit:
            for part in self.dictionary.coders():
                part.coder.W_dec.copy_(torch.nn.functional.normalize(part.coder.W_dec, dim=1))

    def selecting(self, coder: Coder, x: Tensor) -> contextlib.AbstractContextManager[object]:
        """Returns a context in which a coder keeps of a sample what all of its ranks would."""
        return contextlib.nullcontext()

    def keeping(self) -> contextlib.AbstractContextManager[object]:
        return self.revival.keeping()

    def with_auxiliary_losses(self, loss: Loss, batch: Batch) -> Loss:
        settings = self.settings
        if settings.loss_fn != "reconstruction":
            if batch.model_loss_fn is None:
                raise ConfigError(
                    f"loss_fn={settings.loss_fn!r} needs the model's loss, and these data are activations only. "
                    "Train on a ContextStream."
                )
            losses = batch.model_loss_fn(loss.reconstruction.outputs)
            loss = loss._replace(total=loss.total + losses[settings.loss_fn], terms={**loss.terms, **losses})
        # AuxK is a share of the error, so its weight follows the size of that
        auxk_scale = self.loss_scale * self.revival.mean_error if self.settings.auxk_is_share_of_error else 1.0
        return self.revival.added(loss, batch, loss_scale=self.loss_scale, auxk_scale=auxk_scale)

    def unit_row_names(self) -> set[str]:
        is_tied = any(part.coder.is_tied for part in self.dictionary.coders())
        if not (self.settings.unit_norm_decoder or is_tied):
            return set()
        return {name for name, _ in self.dictionary.named_parameters() if name.rpartition(".")[2] == "W_dec"}

    def lr_factors(self) -> Mapping[str, float]:
        return {"W_enc": self.settings.encoder_lr_factor, "W_dec": self.settings.decoder_lr_factor}

    def encoders(self) -> list[Encoder]:
        return self.dictionary.encoders()

    @property
    def error_scale(self) -> Tensor:
        """Factor of the squared error in the loss."""
        return self.settings.reconstruction_weight * self.loss_scale

    @property
    def dead(self) -> DeadLatents:
        """Which latents are dead."""
        return self.revival.dead


def _warn_of_mean(y: Tensor) -> None:
    """Warns if a b_dec of zeros leaves most of the activations to be learned as a mean."""
    mean, variance = y.mean(0).square().sum(), (y - y.mean(0)).square().sum(-1).mean()
    if mean > _LARGE_MEAN * variance:
        logger.warning(
            "b_dec_init_method='zeros', and the mean of the activations is %.1f times their standard deviation: short "
            "runs will not explain it. Use 'geometric_median' or 'mean'.",
            float((mean / variance).sqrt()),
        )


def copy_trained(
    trained: Dictionary,
    nonlinearity: Nonlinearity | dict[str, object],
    settings: OptimizationConfig,
    generator: torch.Generator,
) -> Dictionary:
    """Returns a copy of a trained dictionary with another nonlinearity and number of latents."""
    expansion = settings.dict_size / trained.dict_size
    if expansion < 1:
        raise ConfigError(
            f"Got dict_size={settings.dict_size} for a {type(trained).__name__} of {trained.dict_size} latents, of "
            "which none are removed. Leave dict_size out, or give more."
        )
    dictionary = expand_or_convert(trained, expansion=expansion, nonlinearity=nonlinearity, generator=generator)
    if dictionary.dict_size != settings.dict_size:
        raise ConfigError(
            f"Got dict_size={settings.dict_size} for a {type(trained).__name__} of {trained.dict_size} latents in "
            f"equal parts. Give a multiple of {trained.dict_size} near it, such as {dictionary.dict_size}."
        )
    return dictionary


def _new_dictionary(
    nonlinearity: Nonlinearity, settings: TrainerConfig, run: RunInfo, generator: torch.Generator
) -> Trainable:
    """Returns a new dictionary; raises ConfigError where settings or sites do not fit."""
    inputs = run.read_dims  # one width for each site
    options: dict[str, Any] = {} if settings.rank_by_norm is None else {"rank_by_norm": settings.rank_by_norm}
    if settings.wiring == "autoencoder":
        cls = settings.dict_class or settings.autoencoder_class or autoencoder_class(type(nonlinearity))
        if cls is SparseAutoencoder:  # a nonlinearity without a class of its own
            options["nonlinearity"] = nonlinearity
        else:
            options |= {**nonlinearity.options(), **settings.autoencoder_options()}
        options["apply_b_dec_to_input"] = settings.apply_b_dec_to_input
        try:
            dictionary = _built(cls, run.activation_dim, settings.dict_size, generator, options)
            assert isinstance(dictionary, SparseAutoencoder)
            if has_own_method(cls, "forward"):
                said = "%s.forward is not called in training, which calls its `encode` and `decode`."
                logger.warning(said, cls.__name__)
        except (ConfigError, TypeError, ValueError, AttributeError, AssertionError) as error:
            if settings.dict_class is None and isinstance(error, ConfigError):
                raise
            reason = str(error).rstrip(".") or type(error).__name__
            raise ConfigError(
                f"{cls.__name__} cannot be built as an autoencoder with {type(nonlinearity).__name__}: {reason}. "
                "Leave dict_class out, or use the trainer of its nonlinearity."
            ) from error
    else:
        if settings.rank_by_norm is not None and WIRINGS[settings.wiring].has_parallel_coders:
            raise ConfigError(f"rank_by_norm has no meaning for wiring={settings.wiring!r}. Leave it out.")
        shape = DictionaryShape(inputs, run.output_dims or inputs, settings.dict_size, settings.n_heads)
        dictionary = WIRINGS[settings.wiring].build(shape, nonlinearity, generator, **options)
    # where another site is written, the decoder is fitted to data later
    norm = 1.0 if settings.decoder_init_norm is None else settings.decoder_init_norm
    coders = list(dictionary.coders())
    for part in coders:
        coder = part.coder
        first, whole = coder.first_latent, settings.dict_size // len(coders)
        set_decoder_(
            coder.W_dec,
            norm=norm,
            orthogonal=settings.orthogonal_init,
            generator=generator,
            first=first,
            whole=whole,
        )
        if coder.is_tied or coder.W_enc.shape != coder.W_dec.shape:
            continue
        if settings.init_encoder_as_decoder_transpose:
            coder.W_enc.data.copy_(coder.W_dec.data)
        else:
            own = (first, first + len(coder.W_enc))
            coder.W_enc.data.copy_(unit_rows(whole, coder.W_enc.shape[1], generator, own))
    return dictionary


def _built(cls: type, dim: int, dict_size: int, generator: torch.Generator, options: dict[str, Any]) -> Any:
    """Returns a dictionary of a class, also of one whose constructor takes (dim, dict_size, k)."""
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return cls(dim, dict_size, generator=generator, **options)
    # written for dictionary-learning 0.1: what it does not take is as its base has it
    made = cls(dim, dict_size, **{name: value for name, value in options.items() if name in parameters})
    made.apply_b_dec_to_input = options.get("apply_b_dec_to_input", made.apply_b_dec_to_input)
    return made


def _trained_dictionary(
    trained: Dictionary, nonlinearity: Nonlinearity, settings: TrainerConfig, run: RunInfo, generator: torch.Generator
) -> Trainable:
    """Returns a copy of a trained dictionary; raises ConfigError where settings do not fit it."""
    own = wiring_of(trained) if isinstance(trained, Trainable) else ""
    # an affine part beside latents serves both kinds of sites; others would contradict the config
    serves = own == settings.wiring or (isinstance(trained, SkipAutoencoder) and have_same_parts(own, settings.wiring))
    if not isinstance(trained, Trainable) or not serves:
        raise ConfigError(
            f"finetune got a {type(trained).__name__} with wiring={settings.wiring!r}, which builds another kind. "
            "Leave wiring (and transcoder=True) out, or use the trainer of this dictionary."
        )
    # without `trainSAE` only the inputs are known; the dictionary knows the width of its outputs
    other = (trained.output_dim,) if WIRINGS[settings.wiring].writes_others else run.read_dims
    trained.check_sites(run.read_dims, run.output_dims or other)
    if settings.unit_norm_decoder and not any(part.coder.is_tied for part in trained.coders()):
        stored, trained = trained.dtype, copy.deepcopy(trained).float()
        fold_rounded_norm_(trained, stored)
    elif WIRINGS[settings.wiring].unit_rows and not settings.unit_norm_decoder:
        logger.info("Decoder rows of unequal norm decide which latents are kept, and are not normalized.")
    dictionary = copy_trained(trained, nonlinearity, settings, generator)
    assert isinstance(dictionary, Trainable)
    return dictionary
