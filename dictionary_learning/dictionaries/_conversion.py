"""Trained dictionaries as the start of a run: with more latents, or with another nonlinearity."""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dictionary_learning.dictionaries._base import Dictionary
from dictionary_learning.dictionaries._coder import Coder, build_nonlinearity
from dictionary_learning.dictionaries._named import MatryoshkaBatchTopKSAE, autoencoder_class
from dictionary_learning.dictionaries._parallel_coders import ParallelCoders
from dictionary_learning.dictionaries._wirings import SparseAutoencoder, Transcoder
from dictionary_learning.dictionaries.nonlinearities import (
    Gated,
    GroupMax,
    JumpReLU,
    Nonlinearity,
    ReLU,
    ThresholdedTopK,
)
from dictionary_learning.errors import ConfigError


class Encoding(NamedTuple):
    """The latents of a dictionary as z 1[z > threshold] with z = W_enc x + b_enc."""

    W_enc: Tensor
    b_enc: Tensor
    threshold: Tensor | None
    """Threshold of each latent (dict_size,); None where it is not known."""


D = TypeVar("D", bound=Dictionary)


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
        dictionary: A trained dictionary, which is not changed.
        expansion: Factor of the number of latents, at least 1.
        nonlinearity: Another nonlinearity, or its name and options: `{"name": "top_k", "k": 32}`.
        generator: Draws the directions of new latents; None for the global generator.

    Raises:
        ConfigError: `expansion` is below 1, thresholds are needed and unknown, or groups would
            change.
    """
    if not expansion >= 1:
        raise ConfigError(f"expand_or_convert got expansion={expansion}; it only adds latents. Give at least 1.")
    if isinstance(dictionary, Coder):
        made: Dictionary = _coder(dictionary, expansion, nonlinearity, generator)
    elif isinstance(dictionary, ParallelCoders):
        made = dictionary.with_parts(
            [_coder(part.coder, expansion, nonlinearity, generator) for part in dictionary.coders()]
        )
    else:
        built = None if nonlinearity is None else _built(nonlinearity)
        made = dictionary.expanded(round(dictionary.dict_size * expansion), built, generator)
    return made.requires_grad_(True)  # pyright: ignore[reportReturnType]


def _coder(
    dictionary: Coder,
    expansion: float,
    nonlinearity: Nonlinearity | dict[str, Any] | None,
    generator: torch.Generator | None,
) -> Coder:
    old, n_old = dictionary.nonlinearity, dictionary.dict_size
    new = _built(old if nonlinearity is None else nonlinearity)
    dict_size = round(n_old * expansion)
    if isinstance(new, GroupMax) and type(new) is type(old) and dict_size > n_old:
        raise ConfigError(
            f"GroupMax keeps the largest latent of each of {new.k} groups, and {dict_size} latents form other groups "
            f"than {n_old}. Choose another nonlinearity, such as top_k, or expansion=1."
        )
    made = rebuild_like(dictionary, new, dict_size=dict_size, rank_by_norm=dictionary.rank_by_norm, generator=generator)
    made = made.float().to(dictionary.device)
    encoding = None if type(new) is type(old) else _encoding(dictionary)
    _copy_(made, dictionary, dictionary.W_enc if encoding is None else encoding.W_enc)
    if encoding is None:
        if made.b_enc is not None and dictionary.b_enc is not None:
            _fill(made.b_enc, dictionary.b_enc)
        _copy_state_(made.nonlinearity, old, n_old)
    else:
        _set_encoding_(made, encoding, dictionary)
    _shift_new_biases_(made, dictionary)
    return made


def rebuild_like(
    dictionary: Coder,
    nonlinearity: Nonlinearity,
    *,
    dict_size: int,
    rank_by_norm: bool,
    generator: torch.Generator | None = None,
) -> Coder:
    """Returns a new dictionary of the same wiring, with the class known for the nonlinearity.

    Args:
        dictionary: A dictionary, which is not changed.
        nonlinearity: A new nonlinearity, without tensors for latents yet.
        dict_size: Number of latents.
        rank_by_norm: Whether latents are ranked by value times decoder norm.
        generator: Draws the weights; None for the global generator.
    """
    options: dict[str, Any] = {"rank_by_norm": rank_by_norm, "generator": generator}
    if not isinstance(dictionary, SparseAutoencoder):
        options |= {"dict_size": dict_size, "nonlinearity": nonlinearity}
        return type(dictionary)(**{**dictionary.options(), **options})
    options["apply_b_dec_to_input"] = dictionary.apply_b_dec_to_input
    is_same = type(nonlinearity) is type(dictionary.nonlinearity)
    made_class = type(dictionary) if is_same else autoencoder_class(type(nonlinearity))
    if made_class is SparseAutoencoder:
        options["nonlinearity"] = nonlinearity
    else:
        options |= nonlinearity.options()
    if isinstance(dictionary, MatryoshkaBatchTopKSAE) and is_same:
        *inner, outer = dictionary.group_sizes
        options["group_sizes"] = [*inner, outer + dict_size - dictionary.dict_size]
    return made_class(dictionary.activation_dim, dict_size, **options)


def _built(nonlinearity: Nonlinearity | dict[str, Any]) -> Nonlinearity:
    """Returns a new nonlinearity with the same options, without tensors for latents yet."""
    if isinstance(nonlinearity, Nonlinearity):
        return type(nonlinearity)(**nonlinearity.options())
    return build_nonlinearity(nonlinearity)


def _copy_(made: Coder, dictionary: Coder, W_enc: Tensor) -> None:
    """Copies the matrices, b_dec and W_skip."""
    n_old = dictionary.dict_size
    made.W_dec[:n_old] = dictionary.W_dec.float()
    if not made.is_tied:
        made.W_enc[n_old:] *= W_enc.float().norm(dim=1).mean()
        made.W_enc[:n_old] = W_enc.float()
    for own, other in ((made.b_dec, dictionary.b_dec), (made.W_skip, dictionary.W_skip)):
        if own is not None and other is not None:
            own.copy_(other)


def _copy_state_(own: Nonlinearity, other: Nonlinearity, n_old: int) -> None:
    given = other.state_dict()
    if isinstance(own, ThresholdedTopK) and own.options() != other.options():
        return  # another k needs another threshold
    for name, tensor in own.state_dict(keep_vars=True).items():
        if tensor.ndim and len(given[name]) == n_old:
            _fill(tensor, given[name])
        else:
            tensor.copy_(given[name])


def _fill(tensor: Tensor, values: Tensor) -> None:
    """Sets the first entries to the values, and the others, of new latents, to their median."""
    values = values.float()
    tensor[: len(values)] = values
    tensor[len(values) :] = values.median()


def _encoding(dictionary: Coder) -> Encoding:
    nonlinearity, W = dictionary.nonlinearity, dictionary.W_enc.float()
    b = W.new_zeros(len(W)) if dictionary.b_enc is None else dictionary.b_enc.float()
    if isinstance(nonlinearity, Gated):
        # the gate pre + gate_bias > 0 as a threshold of the magnitude exp(r) pre + mag_bias
        gate, magnitude, slope = (
            p.float() for p in (nonlinearity.gate_bias, nonlinearity.mag_bias, nonlinearity.r_mag.exp())
        )
        return Encoding(W * slope.unsqueeze(1), magnitude, (magnitude - slope * gate).clamp_min(0))
    if isinstance(nonlinearity, JumpReLU):
        return Encoding(W, b, nonlinearity.threshold.float())
    if isinstance(nonlinearity, ReLU):
        return Encoding(W, b, torch.zeros_like(b))
    if isinstance(nonlinearity, ThresholdedTopK) and float(nonlinearity.threshold) >= 0:
        threshold = nonlinearity.threshold.float().expand_as(b)
        return Encoding(W, b, threshold / dictionary.ranking_norms() if dictionary.rank_by_norm else threshold)
    return Encoding(W, b, None)


def _set_encoding_(made: Coder, encoding: Encoding, dictionary: Coder) -> None:
    """Sets biases and thresholds from those of another nonlinearity."""
    own, old = made.nonlinearity, dictionary.nonlinearity
    if made.b_enc is not None:
        _fill(made.b_enc, encoding.b_enc)
    if isinstance(own, JumpReLU):
        if encoding.threshold is None:
            raise ConfigError(
                f"JumpReLU needs thresholds, and this {type(old).__name__} has learned none. Estimate them on "
                "activations: expand_or_convert(calibrate(dictionary, activations, n_tokens))."
            )
        _fill(own.threshold, encoding.threshold)
    elif isinstance(own, Gated):
        _fill(own.mag_bias, encoding.b_enc)
        _fill(own.gate_bias, encoding.b_enc - (0 if encoding.threshold is None else encoding.threshold))
    elif isinstance(own, ThresholdedTopK) and isinstance(old, ThresholdedTopK) and own.k == old.k:
        own.threshold.copy_(old.threshold)


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
