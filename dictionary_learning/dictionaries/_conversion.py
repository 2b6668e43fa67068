"""Trained dictionaries as the start of a run: with more latents, or with another nonlinearity."""

from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning.dictionaries._base import Dictionary
from dictionary_learning.dictionaries._coder import Coder, build_nonlinearity
from dictionary_learning.dictionaries._named import MatryoshkaBatchTopKSAE, autoencoder_class
from dictionary_learning.dictionaries._parallel_coders import ParallelCoders
from dictionary_learning.dictionaries._wirings import SparseAutoencoder, Transcoder
from dictionary_learning.dictionaries.nonlinearities import GroupMax, Nonlinearity, SparseSelection, ThresholdedTopK
from dictionary_learning.errors import ConfigError

D = TypeVar("D", bound=Dictionary)


@checked()
@torch.no_grad()
def expand_or_convert(
    dictionary: D,
    *,
    expansion: float = 1,
    nonlinearity: Nonlinearity | dict[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> D:
    """Returns a trainable float32 copy with more latents, or with another nonlinearity.

    New latents come after the existing ones, which do not change. The decoder row of a new latent
    is a random direction of unit norm. Its encoder row is the same direction (another one where
    input and output widths differ) with the mean norm of the existing rows. Its biases and
    thresholds are the medians of the existing ones. In a Matryoshka dictionary the last group
    grows; in a cross-layer transcoder or a set of heads, each coder grows by the same factor.

    Another nonlinearity gets the same directions, and fires on the same tokens where both have
    thresholds: JumpReLU gets those of Gated exactly, or the threshold that TopK and BatchTopK
    learned. Without one, `calibrate` estimates thresholds on data.

    Args:
        expansion: Factor of the number of latents, at least 1.
        nonlinearity: Another nonlinearity, or its name and options: `{"name": "top_k", "k": 32}`.
        generator: Draws the directions of new latents; None for the global generator.

    Raises:
        ConfigError: `expansion` is below 1, thresholds are needed and unknown, or groups would
            change.
    """
    if isinstance(dictionary, Coder):
        made: Dictionary = _coder(dictionary, expansion, nonlinearity, generator)
    elif isinstance(dictionary, ParallelCoders):
        made = dictionary.with_parts(
            [_coder(part.coder, expansion, nonlinearity, generator) for part in dictionary.coders()]
        )
    else:
        built = None if nonlinearity is None else _without_tensors(nonlinearity)
        made = dictionary.expanded(round(dictionary.dict_size * expansion), built, generator)
    return cast(D, made.requires_grad_(True))


def _coder(
    dictionary: Coder,
    expansion: float,
    nonlinearity: Nonlinearity | dict[str, Any] | None,
    generator: torch.Generator | None,
) -> Coder:
    old, n_old = dictionary.nonlinearity, dictionary.dict_size
    new = _without_tensors(old if nonlinearity is None else nonlinearity)
    dict_size = round(n_old * expansion)
    is_same = type(new) is type(old)
    if isinstance(new, GroupMax) and is_same and dict_size > n_old:
        raise ConfigError(
            f"GroupMax keeps the largest latent of each of {new.k} groups, and {dict_size} latents form other groups "
            f"than {n_old}. Choose another nonlinearity, such as top_k, or expansion=1."
        )
    made = rebuild_like(dictionary, new, dict_size=dict_size, rank_by_norm=dictionary.rank_by_norm, generator=generator)
    made = made.float().to(dictionary.device)
    made.W_dec[:n_old] = dictionary.W_dec.float()
    for own, other in ((made.b_dec, dictionary.b_dec), (made.W_skip, dictionary.W_skip)):
        if own is not None and other is not None:
            own.copy_(other)
    (_copy_encoder_ if is_same else _convert_encoder_)(made, dictionary)
    _shift_new_biases_(made, dictionary)
    return made


def rebuild_like(
    dictionary: Coder,
    nonlinearity: Nonlinearity,
    *,
    dict_size: int,
    rank_by_norm: bool,
    generator: torch.Generator | None,
) -> Coder:
    """Returns a new dictionary of the same wiring, with the class known for the nonlinearity.

    The nonlinearity is a new one, without tensors for latents yet.
    """
    options: dict[str, Any] = {"rank_by_norm": rank_by_norm, "generator": generator}
    if not isinstance(dictionary, SparseAutoencoder):
        options |= {"dict_size": dict_size, "nonlinearity": nonlinearity}
        return type(dictionary)(**{**dictionary.options(), **options})
    options["apply_b_dec_to_input"] = dictionary.apply_b_dec_to_input
    is_same = type(nonlinearity) is type(dictionary.nonlinearity)
    made_class = type(dictionary) if is_same else autoencoder_class(type(nonlinearity))
    options |= {"nonlinearity": nonlinearity} if made_class is SparseAutoencoder else nonlinearity.options()
    if isinstance(dictionary, MatryoshkaBatchTopKSAE) and is_same:
        *inner, outer = dictionary.group_sizes
        options["group_sizes"] = [*inner, outer + dict_size - dictionary.dict_size]
    return made_class(dictionary.activation_dim, dict_size, **options)


def _without_tensors(nonlinearity: Nonlinearity | dict[str, Any]) -> Nonlinearity:
    """Returns a new nonlinearity with the same options, without tensors for latents yet."""
    if isinstance(nonlinearity, Nonlinearity):
        return type(nonlinearity)(**nonlinearity.options())
    return build_nonlinearity(nonlinearity)


def _copy_encoder_(made: Coder, dictionary: Coder) -> None:
    """Copies the encoder and the state of the same nonlinearity."""
    _set_W_enc_(made, dictionary.W_enc.float())
    if made.b_enc is not None and dictionary.b_enc is not None:
        _fill(made.b_enc, dictionary.b_enc)
    own, old = made.nonlinearity, dictionary.nonlinearity
    if isinstance(own, ThresholdedTopK) and own.options() != old.options():
        return  # another k needs another threshold
    given = old.state_dict()
    for name, tensor in own.state_dict(keep_vars=True).items():
        if tensor.ndim and len(given[name]) == dictionary.dict_size:
            _fill(tensor, given[name])
        else:
            tensor.copy_(given[name])


def _convert_encoder_(made: Coder, dictionary: Coder) -> None:
    """Sets encoder, biases and thresholds from those of another nonlinearity."""
    own, old = made.nonlinearity, dictionary.nonlinearity
    form, W = old.threshold_form(), dictionary.W_enc.float()
    zeros = W.new_zeros(len(W))  # (dict_size,)
    scale = (zeros + form.scale).unsqueeze(1)  # (dict_size, 1)
    _set_W_enc_(made, W * scale)
    bias = form.bias + (zeros if dictionary.b_enc is None else dictionary.b_enc.float())
    if made.b_enc is not None:
        _fill(made.b_enc, bias)
    threshold = None if form.threshold is None else zeros + form.threshold
    if threshold is not None and dictionary.rank_by_norm and isinstance(old, SparseSelection):
        threshold = threshold / dictionary.ranking_norms()  # it is one of value times norm
    for name, values in own.from_threshold_form(bias, threshold).items():
        if values is None:
            raise ConfigError(
                f"{type(own).__name__} needs thresholds, and this {type(old).__name__} has learned none. Estimate them "
                "on activations: expand_or_convert(calibrate(dictionary, activations, n_tokens))."
            )
        _fill(getattr(own, name), values)
    if isinstance(own, ThresholdedTopK) and isinstance(old, ThresholdedTopK) and own.k == old.k:
        own.threshold.copy_(old.threshold)


def _set_W_enc_(made: Coder, W_enc: Tensor) -> None:
    if not made.is_tied:
        made.W_enc[len(W_enc) :] *= W_enc.norm(dim=1).mean()
        made.W_enc[: len(W_enc)] = W_enc


def _fill(tensor: Tensor, values: Tensor) -> None:
    """Sets the first entries to the values, and the others, of new latents, to their median."""
    values = values.float()
    tensor[: len(values)] = values
    tensor[len(values) :] = values.median()


def _shift_new_biases_(made: Coder, dictionary: Coder) -> None:
    """Sets biases of new latents to the median, as if b_dec were subtracted from inputs."""
    n_old = dictionary.dict_size
    if made.apply_b_dec_to_input or made.is_tied or made.b_dec is None or made.dict_size == n_old:
        return
    if isinstance(made, Transcoder):
        return  # b_dec is the center of the outputs, and that of the inputs is not known
    along = made.W_enc @ made.b_dec  # (dict_size,)
    for bias in made.encoder_biases():
        bias[n_old:] = (bias[:n_old] + along[:n_old]).median() - along[n_old:]
