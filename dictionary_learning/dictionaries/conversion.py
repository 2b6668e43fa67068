"""A trained dictionary as the beginning of another run: wider, or with another nonlinearity."""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dictionary_learning.dictionaries.autoencoder import SparseAutoencoder
from dictionary_learning.dictionaries.base import Dictionary
from dictionary_learning.dictionaries.coder import Coder
from dictionary_learning.dictionaries.named import AUTOENCODERS, MatryoshkaBatchTopKSAE
from dictionary_learning.dictionaries.nonlinearities import (
    NONLINEARITIES,
    Gated,
    GroupMax,
    JumpReLU,
    Nonlinearity,
    ReLU,
    ThresholdedTopK,
    TopK,
)
from dictionary_learning.dictionaries.parallel_coders import ParallelCoders
from dictionary_learning.dictionaries.temporal import TemporalAutoencoder
from dictionary_learning.dictionaries.temporal_widening import widened
from dictionary_learning.dictionaries.transcoder import Transcoder
from dictionary_learning.errors import ConfigError


class Encoding(NamedTuple):
    """A dictionary's latents as z 1[z > threshold], z = W_enc x + b_enc."""

    W_enc: Tensor
    b_enc: Tensor
    threshold: Tensor | None
    """Of each latent; None where none is known."""


D = TypeVar("D", bound=Dictionary)


@torch.no_grad()
def expand_or_convert(
    dictionary: D,
    *,
    expansion: float = 1,
    nonlinearity: Nonlinearity | dict[str, Any] | None = None,
    generator: torch.Generator | None = None,
) -> D:
    """Returns a trainable copy to begin a run from, in float32.

    New latents come after the existing ones, which stay as they are. A new latent has a random direction of unit norm; its encoder is
    that direction (a random one where inputs and outputs have other widths) with the mean norm of the existing encoders. Its bias and
    the nonlinearity's tensors are the medians of the existing ones. The last group of a Matryoshka dictionary grows.

    Another nonlinearity keeps the directions, and, where both have thresholds, what fires: JumpReLU takes its thresholds from
    Gated exactly, or from the threshold that TopK and BatchTopK learnt. Without one, `calibrate` finds thresholds on data.

    A cross-layer transcoder or a set of heads grows in each of its coders alike. In a temporal dictionary attention reads nothing from
    new latents at first, and what it predicts of the others stays; its nonlinearity is top_k or relu.

    Args:
        dictionary: a trained one; it is not changed.
        expansion: how many times as many latents to have.
        nonlinearity: another one, or its name and options as `{"name": "top_k", "k": 32}`.
        generator: draws the directions of new latents; the global one if there is none.

    Raises:
        ConfigError: expansion is below 1, a threshold is needed and none is known, or groups would change with the number of latents.
    """
    if not expansion >= 1:
        raise ConfigError(
            f"expand_or_convert got expansion={expansion}; latents are only added, so it must be at least 1."
        )
    if isinstance(dictionary, Coder):
        made: Dictionary = _coder(dictionary, expansion, nonlinearity, generator)
    elif isinstance(dictionary, ParallelCoders):
        made = dictionary.with_parts(
            [_coder(part.coder, expansion, nonlinearity, generator) for part in dictionary.coders()]
        )
    elif isinstance(dictionary, TemporalAutoencoder):
        k = dictionary.k if nonlinearity is None else _k_of(nonlinearity)
        made = widened(dictionary, round(dictionary.dict_size * expansion), k, generator)
    else:
        raise ConfigError(
            f"expand_or_convert takes a dictionary that is trained; got {type(dictionary).__name__}. Of one that normalizes tokens, give the one "
            "inside: its attribute `dictionary`."
        )
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
            f"GroupMax takes the largest latent of each of {old.options()['k']} groups, and {dict_size} latents are grouped otherwise than "
            f"{n_old}. Choose another nonlinearity, such as top_k, or expansion=1."
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
    """Returns a new dictionary of the same wiring, with the class that an autoencoder of the nonlinearity is known by."""
    options = dictionary.options()
    if not isinstance(dictionary, SparseAutoencoder):
        of_nonlinearity = {"name": NONLINEARITIES.name_of(type(nonlinearity)), **nonlinearity.options()}
        changed = {"dict_size": dict_size, "nonlinearity": of_nonlinearity, "rank_by_norm": rank_by_norm}
        return type(dictionary)(**{**options, **changed}, generator=generator)
    wiring = {
        "apply_b_dec_to_input": dictionary.centered,
        "rank_by_norm": rank_by_norm,
        "generator": generator,
    }
    is_same = type(nonlinearity) is type(dictionary.nonlinearity)
    name = type(dictionary) if is_same else AUTOENCODERS.get(type(nonlinearity), SparseAutoencoder)
    if name is SparseAutoencoder:
        return SparseAutoencoder(dictionary.activation_dim, dict_size, nonlinearity, **wiring)
    own = nonlinearity.options()
    if isinstance(dictionary, MatryoshkaBatchTopKSAE) and is_same:
        *inner, outer = dictionary.group_sizes
        own["group_sizes"] = [*inner, outer + dict_size - dictionary.dict_size]
    return name(dictionary.activation_dim, dict_size, **own, **wiring)


def _k_of(nonlinearity: Nonlinearity | dict[str, Any]) -> int | None:
    """Returns the k that a temporal dictionary has with a nonlinearity."""
    built = _built(nonlinearity)
    if type(built) is TopK:
        return built.k
    if type(built) is ReLU:
        return None
    raise ConfigError(f"A temporal dictionary has top_k or relu; it cannot have {type(built).__name__}.")


def _built(nonlinearity: Nonlinearity | dict[str, Any]) -> Nonlinearity:
    """Returns a new nonlinearity with the same options and no tensors for latents yet."""
    if isinstance(nonlinearity, Nonlinearity):
        return type(nonlinearity)(**nonlinearity.options())
    options = dict(nonlinearity)
    return NONLINEARITIES[options.pop("name", "")](**options)


def _copy_(made: Coder, dictionary: Coder, W_enc: Tensor) -> None:
    """Copies the matrices and what does not depend on the number of latents."""
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
        return  # the threshold is that of another k
    for name, tensor in own.state_dict(keep_vars=True).items():
        if tensor.ndim and len(given[name]) == n_old:
            _fill(tensor, given[name])
        else:
            tensor.copy_(given[name])


def _fill(tensor: Tensor, values: Tensor) -> None:
    """Sets the first entries to the values and the others to their median."""
    values = values.float()
    tensor[: len(values)] = values
    tensor[len(values) :] = values.median()


def _encoding(dictionary: Coder) -> Encoding:
    nonlinearity, W = dictionary.nonlinearity, dictionary.W_enc.float()
    b = W.new_zeros(len(W)) if dictionary.b_enc is None else dictionary.b_enc.float()
    if isinstance(nonlinearity, Gated):
        # pre + gate_bias > 0 where exp(r) pre + mag_bias > mag_bias - exp(r) gate_bias
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
    """Sets biases and thresholds by those of another nonlinearity."""
    own, old = made.nonlinearity, dictionary.nonlinearity
    if made.b_enc is not None:
        _fill(made.b_enc, encoding.b_enc)
    if isinstance(own, JumpReLU):
        if encoding.threshold is None:
            raise ConfigError(
                f"JumpReLU needs thresholds, and this {type(old).__name__} has learnt none. Find them on activations: "
                "expand_or_convert(calibrate(dictionary, activations, n_tokens))."
            )
        _fill(own.threshold, encoding.threshold)
    elif isinstance(own, Gated):
        _fill(own.mag_bias, encoding.b_enc)
        _fill(own.gate_bias, encoding.b_enc - (0 if encoding.threshold is None else encoding.threshold))
    elif isinstance(own, ThresholdedTopK) and isinstance(old, ThresholdedTopK) and own.k == old.k:
        own.threshold.copy_(old.threshold)


def _shift_new_biases_(made: Coder, dictionary: Coder) -> None:
    """Sets the biases of new latents where b_dec is not subtracted from the input: the median is that of biases with it subtracted."""
    n_old = dictionary.dict_size
    if made.centered or made.is_tied or made.b_dec is None or made.dict_size == n_old or isinstance(made, Transcoder):
        return  # what a transcoder reads has a center that it does not know
    along = made.W_enc @ made.b_dec
    for bias in (made.b_enc, *(getattr(made.nonlinearity, name, None) for name in ("gate_bias", "mag_bias"))):
        if isinstance(bias, nn.Parameter):
            bias[n_old:] = (bias[:n_old] + along[:n_old]).median() - along[n_old:]
