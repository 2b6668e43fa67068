"""Export of dictionaries that were trained on normalized activations.

A scale for each site is folded into the weights. Where they cannot absorb it, as that of each
token, the dictionary is wrapped in a `Normalized`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dictionary_learning.activations._normalizers import NORMALIZATIONS, Normalizer, Scalar
from dictionary_learning.dictionaries._base import Dictionary
from dictionary_learning.dictionaries._coder import Coder
from dictionary_learning.dictionaries._normalized import Normalized, check_reconstructs_inputs
from dictionary_learning.dictionaries._trainable import Trainable
from dictionary_learning.dictionaries.nonlinearities import SparseSelection
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops._precision import upcast

SiteScales = list[tuple[int, float]]
"""Width and scale of each site, or of the part of it that a coder reads or writes, in order."""


def export(
    dictionary: Dictionary, inputs: Sequence[Normalizer], outputs: Sequence[Normalizer] | None = None
) -> Dictionary:
    """Returns a dictionary for the model's own activations; the given one is changed, or wrapped.

    It has a normalizer for each site that it reads and writes, in order; by default it reconstructs
    its inputs.
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
    """Fails early, before training, if a dictionary cannot be exported with these normalizers."""
    dictionary.check_sites([n.dim for n in inputs], [n.dim for n in (inputs if outputs is None else outputs)])
    if not _is_wrapped(dictionary, inputs, outputs):
        _check_folding(dictionary, _scales(inputs), _scales(inputs if outputs is None else outputs))
        return
    check_reconstructs_inputs(dictionary)
    kinds = {type(n) for n in (*inputs, *(outputs or ())) if not isinstance(n, Scalar)}
    if len(kinds) > 1 or (kinds and (outputs is not None or any(isinstance(n, Scalar) for n in inputs))):
        names = ", ".join(NORMALIZATIONS.name_of(type(n)) for n in (*inputs, *(outputs or ())))
        raise ConfigError(
            f"Got the normalizers {names}. A per-token normalization must be the same at all inputs, and they must be "
            "reconstructed. Choose one normalization for all sites."
        )


@torch.no_grad()
def fold_(dictionary: Dictionary, inputs: Sequence[Normalizer], outputs: Sequence[Normalizer] | None = None) -> None:
    """Folds scales into the weights, in place.

    Afterwards outputs for x equal the former outputs for normalized x, in the model's units.
    Latents carry the scale of the inputs: of several sites, the root of their mean square. If
    latents are ranked by decoder norms and the output sites differ in scale, each latent is
    multiplied by its norm and ranked by value from then on. Arguments are those of `export`.
    """
    reads, writes = _scales(inputs), _scales(inputs if outputs is None else outputs)
    _check_folding(dictionary, reads, writes)
    read, write = _common(reads), _common(writes)
    if read is not None and write is not None:
        dictionary.scale_(read, write)
        return
    assert isinstance(dictionary, Trainable)
    for part in dictionary.coders():
        _fold_coder(part.coder, _within(reads, part.reads), _within(writes, part.writes))
    # an output bias of all coders together; a coder's own one is scaled above
    shared = None if isinstance(dictionary, Coder) else getattr(dictionary, "b_dec", None)
    if shared is not None:
        shared.copy_(upcast(shared) * _per_dimension(writes, shared))


def _fold_coder(coder: Coder, reads: SiteScales, writes: SiteScales) -> None:
    read, write = _common(reads), _common(writes)
    if read is not None and write is not None:
        coder.scale_(read, write)
        return
    ranks = coder.rank_by_norm and isinstance(coder.nonlinearity, SparseSelection)
    if ranks and write is None:
        _rank_by_value(coder)
        ranks = False
    unit = math.sqrt(sum(scale * scale for _, scale in reads) / len(reads))
    into = _per_dimension(reads, coder.W_enc)  # (activation_dim,)
    out = _per_dimension(writes, coder.W_dec)  # (output_dim,)
    coder.W_enc.copy_(upcast(coder.W_enc) / into * unit)  # (dict_size, activation_dim)
    if coder.b_enc is not None:
        coder.b_enc.mul_(unit)
    # thresholds apply to latents, or to latents times decoder norms, which carry the outputs' scale
    coder.nonlinearity.scale_(write if ranks and write is not None else unit)
    coder.W_dec.copy_(upcast(coder.W_dec) * out / unit)  # (dict_size, output_dim)
    if coder.b_dec is not None:
        coder.b_dec.copy_(upcast(coder.b_dec) * out)
    if coder.W_skip is not None:
        coder.W_skip.copy_(upcast(coder.W_skip) * out.unsqueeze(1) / into)  # (output_dim, activation_dim)


def _rank_by_value(coder: Coder) -> None:
    """Multiplies latents by the decoder norms that they are ranked by."""
    norms = coder.ranking_norms().unsqueeze(1)  # (dict_size, 1)
    coder.W_enc.copy_(upcast(coder.W_enc) * norms)
    if coder.b_enc is not None:
        coder.b_enc.copy_(upcast(coder.b_enc) * norms.squeeze(1))
    coder.W_dec.copy_(upcast(coder.W_dec) / norms)
    coder.rank_by_norm = False


def _check_folding(dictionary: Dictionary, reads: SiteScales, writes: SiteScales) -> None:
    if not isinstance(dictionary, Trainable):
        if _common(reads) is None or _common(writes) is None:
            raise ConfigError(
                f"A {type(dictionary).__name__} has no weights that could absorb a scale for each site. "
                "Choose unit_mean_square at one site, or none."
            )
        # a class that says nothing of scales fails now, and not when it is trained
        if type(dictionary).scale_ is Dictionary.scale_ and not hasattr(dictionary, "scale_biases"):
            dictionary.scale_(reads[0][1], writes[0][1])
        return
    for part in dictionary.coders():
        coder, inside, outside = part.coder, _within(reads, part.reads), _within(writes, part.writes)
        read, write = _common(inside), _common(outside)
        if coder.is_tied and (read is None or read != write):
            raise ConfigError(
                f"{type(coder.nonlinearity).__name__} has one matrix for reading and writing, so its inputs and "
                "outputs need the same scale. Choose normalize='none', or one scale for both."
            )
        if coder.centered and inside != outside:
            raise ConfigError(
                "b_dec is subtracted from an autoencoder's inputs, so inputs and outputs have one normalizer for both. "
                "Set only one."
            )


def _is_wrapped(dictionary: Dictionary, inputs: Sequence[Normalizer], outputs: Sequence[Normalizer] | None) -> bool:
    """Returns whether the weights cannot absorb the normalization, so that a wrapper must."""
    if not all(n.is_folded for n in (*inputs, *(outputs or ()))):
        return True
    if outputs is not None or not isinstance(dictionary, Trainable):
        return False
    # a matrix that both reads and writes has one scale, also where its sites have several
    return any(p.coder.is_tied and _common(_within(_scales(inputs), p.reads)) is None for p in dictionary.coders())


def _scales(normalizers: Sequence[Normalizer]) -> SiteScales:
    for normalizer in normalizers:
        if not isinstance(normalizer, Scalar):
            raise ConfigError(
                f"{NORMALIZATIONS.name_of(type(normalizer))} depends on the token, so weights cannot absorb it. "
                "Use `export`, which wraps the dictionary."
            )
    return [(n.dim, n.scale) for n in normalizers if isinstance(n, Scalar)]


def _within(sites: SiteScales, place: slice) -> SiteScales:
    """Returns the widths and scales of the sites that lie within some dimensions, cut to them."""
    found: SiteScales = []
    start = 0
    for width, scale in sites:
        stop = start + width
        overlap = min(stop, stop if place.stop is None else place.stop) - max(start, place.start)
        if overlap > 0:
            found.append((overlap, scale))
        start = stop
    return found


def _common(sites: SiteScales) -> float | None:
    """Returns the one scale of all sites, or None if they differ."""
    scales = {scale for _, scale in sites}
    return scales.pop() if len(scales) == 1 else None


def _per_dimension(sites: SiteScales, like: Tensor) -> Tensor:
    """Returns the scale of each dimension, (dim,)."""
    return torch.cat([upcast(like).new_full((width,), scale) for width, scale in sites])
