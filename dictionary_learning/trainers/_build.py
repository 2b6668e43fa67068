"""The dictionary that a trainer starts from: a new one, or a copy of a trained one."""

import copy
import logging
from typing import Any

import torch

from dictionary_learning.dictionaries import (
    WIRINGS,
    Dictionary,
    DictionaryShape,
    SparseAutoencoder,
    Trainable,
    autoencoder_class,
    expand_or_convert,
    have_same_parts,
    wiring_of,
)
from dictionary_learning.dictionaries._folding import fold_decoder_norm_
from dictionary_learning.dictionaries._initialization import set_decoder_
from dictionary_learning.dictionaries.nonlinearities import Nonlinearity
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers._config import OptimizationConfig, RunInfo, TrainerConfig

logger = logging.getLogger(__name__)


def copy_trained(
    trained: Dictionary,
    nonlinearity: Nonlinearity | dict[str, object],
    settings: OptimizationConfig,
    generator: torch.Generator,
) -> Dictionary:
    """Returns a copy of a trained dictionary with another nonlinearity and number of latents."""
    expansion = settings.dict_size / trained.dict_size
    dictionary = expand_or_convert(trained, expansion=expansion, nonlinearity=nonlinearity, generator=generator)
    if dictionary.dict_size != settings.dict_size:
        raise ConfigError(
            f"Got dict_size={settings.dict_size} for a {type(trained).__name__} of {trained.dict_size} latents in "
            f"equal parts. Give a multiple of {trained.dict_size} near it, such as {dictionary.dict_size}."
        )
    return dictionary


def new_dictionary(
    nonlinearity: Nonlinearity, settings: TrainerConfig, run: RunInfo, generator: torch.Generator
) -> Trainable:
    """Returns a new dictionary to train, or raises ConfigError where settings or sites do not fit."""
    inputs = run.read_dims  # one width for each site
    options: dict[str, Any] = {} if settings.rank_by_norm is None else {"rank_by_norm": settings.rank_by_norm}
    if settings.wiring == "autoencoder":
        cls = settings.dict_class or settings.autoencoder_class or autoencoder_class(type(nonlinearity))
        if cls is SparseAutoencoder:  # a nonlinearity without a class of its own
            options["nonlinearity"] = nonlinearity
        else:
            options |= {**nonlinearity.options(), **settings.autoencoder_options()}
        options["apply_b_dec_to_input"] = settings.apply_b_dec_to_input
        dictionary = cls(run.activation_dim, settings.dict_size, generator=generator, **options)
    else:
        if settings.rank_by_norm is not None and WIRINGS[settings.wiring].has_parallel_coders:
            raise ConfigError(f"rank_by_norm has no meaning for wiring={settings.wiring!r}. Leave it out.")
        shape = DictionaryShape(inputs, run.output_dims or inputs, settings.dict_size, settings.n_heads)
        dictionary = WIRINGS[settings.wiring].build(shape, nonlinearity, generator, **options)
    # where another site is written, the decoder is fitted to data later
    norm = 1.0 if settings.decoder_init_norm is None else settings.decoder_init_norm
    for part in dictionary.coders():
        coder = part.coder
        W_enc = coder.W_enc if settings.init_encoder_as_decoder_transpose and not coder.is_tied else None
        set_decoder_(coder.W_dec, W_enc, norm=norm, orthogonal=settings.orthogonal_init, generator=generator)
    return dictionary


def trained_dictionary(
    trained: Dictionary, nonlinearity: Nonlinearity, settings: TrainerConfig, run: RunInfo, generator: torch.Generator
) -> Trainable:
    """Returns a copy of a trained dictionary, or raises ConfigError where the settings do not fit it."""
    own = wiring_of(trained) if isinstance(trained, Trainable) else None
    if not isinstance(trained, Trainable) or own is None or not have_same_parts(own, settings.wiring):
        raise ConfigError(
            f"finetune got a {type(trained).__name__} with wiring={settings.wiring!r}, which builds another kind. "
            "Leave wiring out, or use the trainer of this dictionary."
        )
    # without `trainSAE` only the inputs are known; the dictionary knows the width of its outputs
    other = (trained.output_dim,) if WIRINGS[settings.wiring].writes_others else run.read_dims
    trained.check_sites(run.read_dims, run.output_dims or other)
    if settings.unit_norm_decoder and not any(part.coder.is_tied for part in trained.coders()):
        trained = copy.deepcopy(trained).float()
        fold_decoder_norm_(trained)
    elif WIRINGS[settings.wiring].unit_rows and not settings.unit_norm_decoder:
        logger.info("Decoder rows of unequal norm decide which latents are kept, and are not normalized.")
    dictionary = copy_trained(trained, nonlinearity, settings, generator)
    assert isinstance(dictionary, Trainable)
    return dictionary
