"""Decoder norms folded into the latents, so that a value is a norm in the output."""

import torch
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning.dictionaries._coder import Coder
from dictionary_learning.dictionaries._trainable import Trainable
from dictionary_learning.dictionaries.nonlinearities import SparseSelection
from dictionary_learning.errors import ConfigError
from dictionary_learning.ops._precision import upcast

_EQUAL = 1e-5
"""Relative difference up to which norms are equal: rounding of unit rows in float32."""


@checked()
@torch.no_grad()
def fold_decoder_norm_(dictionary: Trainable) -> None:
    """Normalizes decoder rows and multiplies latents by their norms, in place; outputs stay.

    The norm is that of `decoder_norms`: the sum over sites where a latent writes several. Rows of
    zeros stay, and so do their latents. With `rank_by_norm` the same latents are kept as before.

    Raises:
        ConfigError: Other latents would be kept, since latents of unequal norms are compared by
            value; or the encoder is the decoder. Nothing is changed then.
    """
    fold_rounded_norm_(dictionary)


@torch.no_grad()
def fold_rounded_norm_(dictionary: Trainable, stored: torch.dtype | None = None) -> None:
    """Does the same to weights that were stored in a type, whose rounding makes norms unequal."""
    # all factors first: what is refused must leave every coder unchanged
    found = [(part.coder, _factors(part.coder, stored)) for part in dictionary.coders()]
    for coder, factors in found:
        if factors is not None:
            _fold_(coder, factors)


@torch.no_grad()
def can_fold_decoder_norm(dictionary: Trainable) -> bool:
    """Returns whether `fold_decoder_norm_` would succeed."""
    try:
        for part in dictionary.coders():
            _factors(part.coder)
    except ConfigError:
        return False
    return True


def _factors(coder: Coder, stored: torch.dtype | None = None) -> Tensor | None:
    """Returns the factor of each latent (dict_size,); None for no change."""
    norms = coder.decoder_norms()
    written = norms > 0
    if not bool(written.any()):
        return None
    least, most = (float(norm) for norm in norms[written].aminmax())
    tolerance = max(_EQUAL, torch.finfo(stored or coder.dtype).eps)
    name = type(coder.nonlinearity).__name__
    if coder.is_tied:
        if max(abs(least - 1), abs(most - 1)) <= tolerance:
            return None
        raise ConfigError(
            f"{name} has one matrix for both encoder and decoder, with rows of norm {least:.3g} to {most:.3g}; "
            "its latents cannot be scaled apart. Give its rows unit norm instead."
        )
    if coder.rank_by_norm or not isinstance(coder.nonlinearity, SparseSelection):
        return torch.where(written, norms, 1.0)
    if most - least > tolerance * most:
        raise ConfigError(
            f"{name} compares latents with each other by value, and the decoder's rows have norms from {least:.3g} to "
            f"{most:.3g}: scaled by them, other latents would be kept. Calibrate it first (`calibrate`), for a "
            "threshold of each latent, or train it with rank_by_norm or rows of unit norm."
        )
    return norms[written].mean().expand_as(norms)  # exactly the same factor for all changes no order


def _fold_(coder: Coder, factors: Tensor) -> None:
    coder.W_dec.copy_(upcast(coder.W_dec) / factors.unsqueeze(1))
    coder.W_enc.copy_(upcast(coder.W_enc) * factors.unsqueeze(1))
    if coder.b_enc is not None:
        coder.b_enc.copy_(upcast(coder.b_enc) * factors)
    if not isinstance(coder.nonlinearity, SparseSelection):
        coder.nonlinearity.scale_latents_(factors)
    elif not coder.rank_by_norm:  # else value times norm is compared, which stays
        coder.nonlinearity.scale_(float(factors[0]))
