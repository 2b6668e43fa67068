"""How a dictionary that learnt from normalized activations does without.

A normalizer is fitted to a sample of one site (`normalizers.py`). Those that do the same to all tokens are affine,
z = (x - offset) P, and go into the weights of the finished dictionary. Those that treat each token by its own statistics cannot;
then the dictionary is wrapped.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dictionary_learning.activations.normalizers import NORMALIZATIONS, Affine, Normalizer, Scalar
from dictionary_learning.dictionaries.base import Dictionary
from dictionary_learning.dictionaries.coder import Coder
from dictionary_learning.dictionaries.nonlinearities import Gated, SparseSelection
from dictionary_learning.dictionaries.normalized import Normalized, check_reconstructs_inputs
from dictionary_learning.dictionaries.trainable import CoderSlice, Trainable
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops.precision import upcast

__all__ = ["NORMALIZATIONS", "Normalizer", "check_normalizers", "export", "fold_"]


def export(
    dictionary: Dictionary, inputs: Sequence[Normalizer], outputs: Sequence[Normalizer] | None = None
) -> Dictionary:
    """Turns a dictionary of normalized activations into one of activations as the model gives them.

    Its weights are changed, or it becomes a part of what is returned; give a copy to keep it.

    Args:
        dictionary: the dictionary.
        inputs: the normalizer of each site that it reads, in order.
        outputs: the same for what it writes; by default it reconstructs what it reads.

    Raises:
        ConfigError: the normalizers cannot be had with this dictionary; nothing was changed.
    """
    check_normalizers(dictionary, inputs, outputs)
    if not _is_wrapped(dictionary, inputs, outputs):
        fold_(dictionary, inputs, outputs)
        return dictionary
    name = None if inputs[0].is_folded else NORMALIZATIONS.name_of(type(inputs[0]))
    scales = [n.scale if isinstance(n, Scalar) else 1.0 for n in inputs]
    return Normalized(dictionary, name, site_dims=[n.dim for n in inputs], scales=scales)


def check_normalizers(
    dictionary: Dictionary, inputs: Sequence[Normalizer], outputs: Sequence[Normalizer] | None = None
) -> None:
    """Checks, before training, that a dictionary can be finished with these normalizers.

    Raises:
        ConfigError: it cannot.
    """
    dictionary.check_sites([n.dim for n in inputs], [n.dim for n in (inputs if outputs is None else outputs)])
    if not _is_wrapped(dictionary, inputs, outputs):
        _check_folding(dictionary, inputs, inputs if outputs is None else outputs)
        return
    check_reconstructs_inputs(dictionary)
    kinds = {type(n) for n in (*inputs, *(outputs or ())) if not isinstance(n, Scalar)}
    if len(kinds) > 1 or (kinds and (outputs is not None or any(isinstance(n, Scalar) for n in inputs))):
        names = ", ".join(NORMALIZATIONS.name_of(type(n)) for n in (*inputs, *(outputs or ())))
        raise ConfigError(
            f"Got the normalizers {names}. Tokens that are normalized each by itself must be so at every site, by the same "
            "normalization, and be what is reconstructed. Choose one normalization for all sites."
        )


@torch.no_grad()
def fold_(dictionary: Dictionary, inputs: Sequence[Normalizer], outputs: Sequence[Normalizer] | None = None) -> None:
    """Puts normalizers into the weights, in place: outputs on x are those on normalized x, in the model's units.

    Latents carry the inputs' scale where all inputs are only divided by numbers (of several, the root of their mean
    square), and else are those on normalized x. Where latents are ranked by the norms of what they write, and sites come to
    differ in scale, each latent is multiplied by its norm on normalized activations, and they are ranked by value from then on.

    Args:
        dictionary: the dictionary.
        inputs: the normalizer of each site that it reads, in order.
        outputs: the same for what it writes; by default `inputs`.

    Raises:
        ConfigError: the weights cannot do what the normalizers do; nothing was changed.
    """
    outputs = inputs if outputs is None else outputs
    _check_folding(dictionary, inputs, outputs)
    everything = slice(0, None)
    read, write = _factor(_within(inputs, everything)), _factor(_within(outputs, everything))
    if read is not None and write is not None:
        dictionary.scale_(read, write)
        return
    assert isinstance(dictionary, Trainable)
    shared = None if isinstance(dictionary, Coder) else getattr(dictionary, "b_dec", None)
    for part in dictionary.coders():
        _fold_part(part.coder, _within(inputs, part.reads), _within(outputs, part.writes), has_offset=shared is None)
    if shared is not None:
        blocks = _within(outputs, everything)
        shared.copy_(_written(shared.unsqueeze(0), blocks).squeeze(0) + _offset(blocks, shared))


class _Block(NamedTuple):
    """Consecutive dimensions with the same normalizer."""

    place: slice
    normalizer: Affine


def _fold_part(coder: Coder, reads: list[_Block], writes: list[_Block], *, has_offset: bool) -> None:
    read, write = _factor(reads), _factor(writes)
    if read is not None and write is not None:
        coder.scale_(read, write)
        return
    ranks = coder.rank_by_norm and isinstance(coder.nonlinearity, SparseSelection)
    if ranks and write is None:
        _rank_by_value(coder)
        ranks = False
    factors = [block.normalizer.factor for block in reads]
    known = [factor for factor in factors if factor is not None]
    # in the model's units, as by scale_
    unit = math.sqrt(sum(f * f for f in known) / len(known)) if len(known) == len(factors) else 1.0
    W_enc = _read(coder.W_enc, reads)
    offset = _offset(reads, W_enc)
    if not coder.centered or coder.b_dec is None:
        _shift_pre_activations(coder, -(W_enc @ offset))
    coder.W_enc.copy_(W_enc * unit)
    if coder.b_enc is not None:
        coder.b_enc.mul_(unit)
    coder.nonlinearity.scale_(write if ranks and write is not None else unit)
    coder.W_dec.copy_(_written(coder.W_dec, writes) / unit)
    if coder.b_dec is not None:
        b_dec = _written(coder.b_dec.unsqueeze(0), writes).squeeze(0)
        coder.b_dec.copy_(b_dec + _offset(writes, b_dec) if has_offset else b_dec)
    if coder.W_skip is not None:
        W_skip = _read(_written(coder.W_skip.T, writes).T, reads)
        coder.W_skip.copy_(W_skip)
        if coder.b_dec is not None:
            coder.b_dec.sub_(W_skip @ offset)


def _rank_by_value(coder: Coder) -> None:
    """Makes latents of the products by which they are ranked."""
    norms = coder.ranking_norms().unsqueeze(1)
    coder.W_enc.copy_(upcast(coder.W_enc) * norms)
    if coder.b_enc is not None:
        coder.b_enc.copy_(upcast(coder.b_enc) * norms.squeeze(1))
    coder.W_dec.copy_(upcast(coder.W_dec) / norms)
    coder.rank_by_norm = False


def _shift_pre_activations(coder: Coder, shift: Tensor) -> None:
    if coder.b_enc is not None:
        coder.b_enc.add_(shift)
    elif isinstance(coder.nonlinearity, Gated):
        coder.nonlinearity.gate_bias.add_(shift)
        coder.nonlinearity.mag_bias.add_(shift * coder.nonlinearity.r_mag.exp())


def _check_folding(dictionary: Dictionary, inputs: Sequence[Normalizer], outputs: Sequence[Normalizer]) -> None:
    if isinstance(dictionary, Trainable):
        shared = getattr(dictionary, "b_dec", None)
        for part in dictionary.coders():
            _check_part(part, _within(inputs, part.reads), _within(outputs, part.writes), shared is not None)
        return
    read, write = (_factor(_within(normalizers, slice(0, None))) for normalizers in (inputs, outputs))
    if read is None or write is None:
        raise ConfigError(
            f"A {type(dictionary).__name__} has no weights to put whitening, or a scale for each site, into. "
            "Choose unit_mean_square at one site, or none."
        )


def _check_part(part: CoderSlice, reads: list[_Block], writes: list[_Block], has_output_bias: bool) -> None:
    coder = part.coder
    read, write = _factor(reads), _factor(writes)
    name = type(coder.nonlinearity).__name__
    has_offset = any(block.normalizer.offset is not None for block in reads)
    if coder.is_tied and (read is None or read != write):
        raise ConfigError(
            f"{name} has one matrix for reading and writing, which cannot be whitened, or have inputs and outputs of different "
            "scale. Choose normalize='none', or one scale for both."
        )
    if coder.centered and reads != writes:
        raise ConfigError(
            "b_dec is subtracted from what an autoencoder reads, so it has one normalizer for both. Give one."
        )
    has_output_bias = has_output_bias or coder.b_dec is not None
    if not has_output_bias and any(block.normalizer.offset is not None for block in writes):
        raise ConfigError(
            f"The {type(coder).__name__} has no b_dec to put whitening's mean into. Choose unit_mean_square."
        )
    if has_offset and not coder.centered and coder.b_enc is None and not isinstance(coder.nonlinearity, Gated):
        raise ConfigError(f"{name} has no bias to put whitening's mean into. Choose unit_mean_square.")
    if has_offset and coder.W_skip is not None and coder.b_dec is None:
        raise ConfigError("W_skip without b_dec cannot be whitened. Choose unit_mean_square.")


def _is_wrapped(dictionary: Dictionary, inputs: Sequence[Normalizer], outputs: Sequence[Normalizer] | None) -> bool:
    if not all(n.is_folded for n in (*inputs, *(outputs or ()))):
        return True
    # one matrix for reading and writing has one scale, and may be of sites of several
    if outputs is not None or not isinstance(dictionary, Trainable) or not all(isinstance(n, Scalar) for n in inputs):
        return False
    return any(part.coder.is_tied and _factor(_within(inputs, part.reads)) is None for part in dictionary.coders())


def _within(normalizers: Sequence[Normalizer], place: slice) -> list[_Block]:
    """Returns the normalizers of some dimensions, and where they are among those."""
    blocks, start = [], 0
    for normalizer in normalizers:
        if not isinstance(normalizer, Affine):
            raise ConfigError(
                f"{NORMALIZATIONS.name_of(type(normalizer))} has to know the token, which weights do not. Use `export`, which wraps "
                "the dictionary."
            )
        stop = start + normalizer.dim
        first, last = max(start, place.start), stop if place.stop is None else min(stop, place.stop)
        if first < last:
            if normalizer.factor is None and (first, last) != (start, stop):
                raise ConfigError(
                    "Whitening mixes all dimensions of a site, of which each head reads its own. Choose unit_mean_square, or fit a "
                    "normalizer for each head."
                )
            blocks.append(_Block(slice(first - place.start, last - place.start), normalizer))
        start = stop
    return blocks


def _factor(blocks: list[_Block]) -> float | None:
    """Returns what everything is divided by, where that is all."""
    factors = {block.normalizer.factor for block in blocks}
    return factors.pop() if len(factors) == 1 else None


def _read(W: Tensor, blocks: list[_Block]) -> Tensor:
    return torch.cat([block.normalizer.times(W[:, block.place]) for block in blocks], dim=1)


def _written(W: Tensor, blocks: list[_Block]) -> Tensor:
    return torch.cat([block.normalizer.times_inverse(W[:, block.place]) for block in blocks], dim=1)


def _offset(blocks: list[_Block], like: Tensor) -> Tensor:
    offsets = []
    for place, normalizer in blocks:
        offset = normalizer.offset
        offsets.append(upcast(like).new_zeros(place.stop - place.start) if offset is None else offset.to(upcast(like)))
    return torch.cat(offsets)
