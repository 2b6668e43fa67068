"""Thresholds in place of choosing the largest: latents that do not depend on each other, found on data after training."""

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.coder import Coder
from dictionary_learning.dictionaries.conversion import rebuild_like
from dictionary_learning.dictionaries.nonlinearities import Elementwise, JumpReLU, ReLU, SparseSelection
from dictionary_learning.dictionaries.parallel_coders import ParallelCoders
from dictionary_learning.dictionaries.trainable import Trainable
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.latents import firing_counts

D = TypeVar("D", bound=Trainable)

_OCTAVES = 24
"""Factors of 2 between the largest value that is told apart and the smallest: below it are 6e-8 of it."""
_FINEST = 16
"""Halvings of an octave, at most, where one histogram is for all latents: a relative width of 1.5e-5."""
_FINEST_OF_EACH = 12
"""The same where each latent has its own: 2.4e-4."""
_MOST_COUNTS = 1 << 26
"""In all histograms together: 512 MiB."""
_CHUNK_ELEMENTS = 1 << 24
"""Pre-activations made at once: 64 MiB."""
_MANTISSA_BITS = 23
"""Of a float32; the bits of positive floats are in the order of their values."""


@torch.no_grad()
def calibrate(
    dictionary: D,
    activations: Iterable[Float[Tensor, "_ activation_dim"]],
    n_tokens: int,
    *,
    target_l0: float | None = None,
    match: Literal["l0", "firing"] = "l0",
) -> D:
    """Returns a copy in which each latent fires above a threshold, as JumpReLU, whatever the other latents do.

    "l0": one threshold for all, so that target_l0 latents fire on average over the tokens; of a dictionary that ranks by
    norms, one for value times norm. "firing": a threshold for each latent, so that it fires on as many of the tokens as it did;
    one that never fired does not fire. Batches are then encoded as in training: BatchTopK keeps the largest of each as given.

    Activations pass once, and are counted in histograms whose bins are equal parts of an octave: memory does not grow with n_tokens.
    Within a bin values count as spread evenly. A bin is 2^-16 of the threshold wide with "l0"; with "firing" 2^-12 or, where there are
    more than 650 latents, as little as 512 MiB allow: 2^-7 for 16,384 latents. Tokens that are not finite are left out.

    An autoencoder comes back as a `JumpReluAutoEncoder` (without groups, if it had some), another wiring as itself.

    Args:
        dictionary: TopK, BatchTopK, GroupMax, ReLU or JumpReLU; it is not changed.
        activations: batches, scaled as the dictionary expects them.
        n_tokens: how many tokens to take of them.
        target_l0: for "l0"; by default the dictionary's k. Of a cross-layer transcoder or of heads it is that of all coders together,
            in equal shares.
        match: what stays the same.

    Raises:
        ConfigError: the latents are not made of pre-activations alone, or are signed; or target_l0 is missing or impossible.
        DataError: the activations end before n_tokens.
    """
    parts = list(dictionary.coders()) if isinstance(dictionary, Trainable) else []
    if not parts:
        raise ConfigError(f"calibrate takes a dictionary of encoders and decoders; got {type(dictionary).__name__}.")
    if n_tokens < 1:
        raise ConfigError(f"calibrate got n_tokens={n_tokens}; it needs at least one token.")
    if match not in ("l0", "firing"):
        raise ConfigError(f"calibrate got match={match!r}; choose l0 or firing.")
    if match == "firing" and target_l0 is not None:
        raise ConfigError(
            f'calibrate got target_l0={target_l0} with match="firing", which has no target. Give one of them.'
        )
    share = None if target_l0 is None else target_l0 / len(parts)
    for part in parts:
        _check(part.coder)
    targets = [None if match == "firing" else _target(part.coder, share) for part in parts]
    calibrations = [_Calibration(part.coder, target) for part, target in zip(parts, targets, strict=True)]
    for batch in _finite_tokens(activations, n_tokens, dictionary.device):
        for part, calibration in zip(parts, calibrations, strict=True):
            calibration.add(batch[:, part.reads])
    made = [calibration.export(n_tokens) for calibration in calibrations]
    return dictionary.with_parts(made) if isinstance(dictionary, ParallelCoders) else made[0]  # pyright: ignore[reportReturnType]


class _Calibration:
    """Thresholds of one coder.

    Args:
        coder: the coder; it is not changed.
        target: how many latents are to fire on average; None for as many of each as did.
    """

    def __init__(self, coder: Coder, target: float | None):
        own = coder.nonlinearity
        self.coder, self.target = coder, target
        nonlinearity = JumpReLU(**own.options()) if isinstance(own, JumpReLU) else JumpReLU()
        apart = torch.Generator()  # what it draws is overwritten
        made = rebuild_like(coder, nonlinearity, dict_size=coder.dict_size, rank_by_norm=False, generator=apart)
        self._made = made.to(coder.device).float()
        _copy_weights_(self._made, coder)
        n_rows = coder.dict_size if target is None else 1
        ranks = coder.rank_by_norm and isinstance(own, SparseSelection)
        self._norms = coder.ranking_norms() if ranks and target is not None else None
        self._histograms = Histograms(n_rows, coder.device)
        self._fired = torch.zeros(n_rows, dtype=torch.long, device=coder.device)

    def add(self, x: Float[Tensor, "batch activation_dim"]) -> None:
        """Takes in tokens."""
        if self.target is None:
            self._fired += firing_counts(self.coder.encode_latents(x)[0])
        for rows in x.split(max(1, _CHUNK_ELEMENTS // self.coder.dict_size)):
            pre = self._made.pre_activations(rows)
            self._histograms.add(pre if self._norms is None else pre * self._norms)

    def export(self, n_tokens: int) -> Coder:
        """Returns the coder with thresholds, after so many tokens."""
        wanted = self._fired if self.target is None else self._fired + round(self.target * n_tokens)
        threshold = self._histograms.exceeded_by(wanted)
        assert isinstance(self._made.nonlinearity, JumpReLU)
        self._made.nonlinearity.threshold.copy_(threshold if self._norms is None else threshold / self._norms)
        return self._made.to(self.coder.dtype)  # thresholds stay float32


class Scale(NamedTuple):
    """Where bins are: the bits of a float32, cut off and counted from the first."""

    shift: int
    first: int
    n_bins: int

    def bins(self, values: Tensor) -> Tensor:
        """Returns the bin of each value, negative below the first."""
        return (values.view(torch.int32) >> self.shift) - self.first

    def edges(self, bins: Tensor) -> Tensor:
        """Returns where each bin begins."""
        return ((bins + self.first).to(torch.int32) << self.shift).view(torch.float32)


class Histograms:
    """Counts of positive values, of all latents together or of each.

    Args:
        n_rows: how many histograms: 1, or one for each latent.
        device: where the counts are.
    """

    def __init__(self, n_rows: int, device: torch.device):
        fitting = max(0, (_MOST_COUNTS // (n_rows * _OCTAVES)).bit_length() - 1)
        halvings = _FINEST if n_rows == 1 else min(_FINEST_OF_EACH, fitting)
        self._shift = _MANTISSA_BITS - halvings
        self._counts = torch.zeros(n_rows, _OCTAVES << halvings, dtype=torch.long, device=device)
        self._scale: Scale | None = None

    def add(self, values: Float[Tensor, "batch dict_size"]) -> None:
        """Counts values."""
        largest = values.amax() if values.numel() else values.new_zeros(())
        if bool(largest > 0):
            self._reach(largest)
        if self._scale is None:
            return
        bins = self._scale.bins(values.contiguous())
        latents, n_rows = torch.arange(values.shape[1], device=values.device), len(self._counts)
        at = bins.long() + (latents * self._scale.n_bins if n_rows > 1 else 0)
        at = at[(bins >= 0) & (values > 0)]
        self._counts.view(-1).index_add_(0, at, torch.ones_like(at))

    def _reach(self, largest: Tensor) -> None:
        """Moves the range up to the end of the octave of a value; what falls out below counts as not positive."""
        n_bins = self._counts.shape[1]
        end = (int(largest.view(torch.int32)) >> _MANTISSA_BITS) + 1 << (_MANTISSA_BITS - self._shift)
        last = end if self._scale is None else self._scale.first + n_bins
        if self._scale is not None and end <= last:
            return
        moved = min(end - last, n_bins)
        self._counts = torch.nn.functional.pad(self._counts[:, moved:], (0, moved))
        self._scale = Scale(self._shift, max(end - n_bins, 0), n_bins)

    def exceeded_by(self, wanted: Tensor) -> Float[Tensor, "rows"]:
        """Returns for each histogram the value that so many of those counted exceed."""
        if self._scale is None:
            return torch.zeros(len(wanted), device=wanted.device)
        n_rows = max(1, _CHUNK_ELEMENTS // 4 // self._scale.n_bins)
        parts = zip(self._counts.split(n_rows), wanted.split(n_rows), strict=True)
        return torch.cat([self._exceeded(*part) for part in parts])

    def _exceeded(self, counts: Tensor, wanted: Tensor) -> Tensor:
        assert self._scale is not None
        wanted = wanted.unsqueeze(1)
        reaching = counts.flip(1).cumsum(1).flip(1)  # how many values are in a bin or above
        found = (reaching >= wanted.clamp_min(1)).sum(1, keepdim=True) - 1  # the last bin reached by so many
        at = found.clamp_min(0)
        inside, reached = counts.gather(1, at), reaching.gather(1, at)
        low, high = self._scale.edges(at), self._scale.edges(at + 1)
        share = (reached - wanted) / inside.clamp_min(1)
        # just below: what lies on the edge fires
        between = torch.nextafter(low + (high - low) * share.float(), torch.zeros_like(low))
        never = self._scale.edges((reaching > 0).sum(1, keepdim=True))
        threshold = torch.where(found < 0, 0.0, between.clamp_min(0))  # fewer are positive than are wanted: all fire
        return torch.where(wanted > 0, threshold, never).squeeze(1)


def _finite_tokens(activations: Iterable[Tensor], n_tokens: int, device: torch.device) -> Iterable[Tensor]:
    left = n_tokens
    for batch in activations:
        batch = batch.to(device)
        batch = batch[batch.sum(1, dtype=torch.float32).isfinite()][:left]
        left -= len(batch)
        if len(batch):
            yield batch
        if not left:
            return
    raise DataError(
        f"calibrate got {n_tokens - left} tokens and needs {n_tokens}. Give more activations, or lower n_tokens."
    )


def _check(coder: Coder) -> None:
    nonlinearity = coder.nonlinearity
    name = type(nonlinearity).__name__
    if coder.is_tied:
        raise ConfigError(
            f"{name} makes each latent of what the others have left; no threshold of a pre-activation stands for that."
        )
    if isinstance(nonlinearity, SparseSelection) and nonlinearity.is_signed:
        raise ConfigError(
            f"{name} has negative latents; JumpReLU has none. Calibrate a dictionary of unsigned latents."
        )
    if isinstance(nonlinearity, Elementwise) and not isinstance(nonlinearity, ReLU | JumpReLU):
        raise ConfigError(
            f"{name} is no threshold of a pre-activation; convert it by expand_or_convert(..., nonlinearity=JumpReLU())."
        )


def _target(dictionary: Coder, target_l0: float | None) -> float:
    nonlinearity = dictionary.nonlinearity
    target = getattr(nonlinearity, "k", None) if target_l0 is None else target_l0
    if target is None:
        raise ConfigError(f"{type(nonlinearity).__name__} has no k; give calibrate a target_l0.")
    if not 0 < target <= dictionary.dict_size:
        raise ConfigError(
            f"calibrate got target_l0={target}; it must be positive and at most dict_size={dictionary.dict_size}."
        )
    return float(target)


def _copy_weights_(made: Coder, dictionary: Coder) -> None:
    given = dict(dictionary.named_parameters(recurse=False))
    for name, parameter in made.named_parameters(recurse=False):
        parameter.copy_(given[name])
