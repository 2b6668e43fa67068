"""Thresholds in place of choosing the largest latents, found on data after training."""

import logging
from collections.abc import Iterable, Iterator
from typing import Literal, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning.dictionaries._base import Dictionary
from dictionary_learning.dictionaries._coder import Coder
from dictionary_learning.dictionaries._conversion import rebuild_like
from dictionary_learning.dictionaries._parallel_coders import ParallelCoders
from dictionary_learning.dictionaries._trainable import Trainable
from dictionary_learning.dictionaries.nonlinearities import JumpReLU, SparseSelection
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.latents import firing_counts

logger = logging.getLogger(__name__)

D = TypeVar("D", bound=Trainable)

_CHUNK_ELEMENTS = 1 << 24
"""Pre-activations computed at once: 64 MiB."""
_CAPACITY = 1 << 25
"""Candidates that are stored before those that cannot matter are discarded: 256 MiB."""
_RESERVE = 64
"""Candidates stored for each latent, beyond twice as many as the tokens on which it fired."""
_CLEAR = 1 + 2.0**-11
"""A latent that never fired gets a threshold 2^-12 above its largest pre-activation."""


@checked()
@torch.no_grad()
def calibrate(
    dictionary: D,
    activations: Iterable[Float[Tensor, "_ activation_dim"]],
    n_tokens: int,
    *,
    target_l0: float | None = None,
    match: Literal["l0", "firing"] = "l0",
) -> D:
    """Returns a copy in which each latent fires above a threshold, as JumpReLU does.

    "l0": one threshold for all latents, so that target_l0 fire on average over the tokens; of a
    dictionary that ranks by norms, one for value times norm. "firing": a threshold for each latent,
    so that it fires on as many of the tokens as it did; one that never fired does not fire.
    BatchTopK keeps the largest of each batch as given.

    Thresholds are exact quantiles. Activations are read once, and only the largest positive
    pre-activations are stored, with 8 bytes for each: at most 2^25, or twice what is needed, which
    is target_l0 * n_tokens with "l0". With "firing" up to twice as many as fired are needed, and 64
    for each latent; if tokens are not shuffled and a latent starts to fire often late, too few may
    be left: a warning says of how many latents the threshold is too high. Tokens that are not
    finite are left out.

    An autoencoder is returned as a `JumpReluAutoEncoder` (without groups, if it had some), another
    wiring as itself.

    Args:
        dictionary: One with TopK, BatchTopK, GroupMax, ReLU, JumpReLU, or another masked rectifier
            (`Nonlinearity.is_masked_relu`); it is not changed.
        activations: Batches (batch, activation_dim), scaled as the dictionary expects them.
        target_l0: For "l0"; by default the dictionary's k. For a cross-layer transcoder or heads it
            is that of all coders together, in equal shares.

    Raises:
        ConfigError: A threshold cannot stand for the nonlinearity, or target_l0 is missing or
            impossible.
        DataError: The activations end before n_tokens.
    """
    if not (parts := list(dictionary.coders())):
        raise ConfigError(f"calibrate takes a dictionary of encoders and decoders; got {type(dictionary).__name__}.")
    if match == "firing" and target_l0 is not None:
        raise ConfigError(f"Got target_l0={target_l0} with match='firing', which has no target. Leave one out.")
    share = None if target_l0 is None else target_l0 / len(parts)
    targets = [_target(part.coder, share, match) for part in parts]
    calibrations = [_Calibration(part.coder, target, n_tokens) for part, target in zip(parts, targets, strict=True)]
    for batch in tokens_of(dictionary, activations, n_tokens, "calibrate"):
        for part, calibration in zip(parts, calibrations, strict=True):
            calibration.add(batch[:, part.reads])
    made = [calibration.export() for calibration in calibrations]
    return cast(D, dictionary.with_parts(made) if isinstance(dictionary, ParallelCoders) else made[0])


def tokens_of(
    dictionary: Dictionary, activations: Iterable[Tensor], n_tokens: int, who: str
) -> Iterator[Float[Tensor, "batch activation_dim"]]:
    """Yields the first `n_tokens` finite tokens, batch by batch, on the dictionary's device.

    Raises:
        DataError: They end before, or a batch has another shape.
    """
    n_left = n_tokens
    for batch in activations:
        if not isinstance(batch, Tensor) or batch.ndim != 2:  # pyright: ignore[reportUnnecessaryIsInstance]
            got = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(f"{who} got a batch {got}; a tensor (batch, activation_dim) of one site is needed.")
        dictionary.check_width(batch)
        batch = batch.to(dictionary.device)
        batch = batch[batch.sum(1, dtype=torch.float32).isfinite()][:n_left]
        yield batch
        n_left -= len(batch)
        if not n_left:
            return
    raise DataError(
        f"{who} got {n_tokens - n_left} tokens and needs {n_tokens}. Give more activations, or lower n_tokens."
    )


def _target(coder: Coder, target_l0: float | None, match: str) -> float | None:
    """Returns the number of latents to fire on average; None to preserve the firing counts."""
    nonlinearity, name = coder.nonlinearity, type(coder.nonlinearity).__name__
    if not nonlinearity.is_masked_relu:
        if coder.is_tied:
            reason = "makes each latent of what the others have left; no threshold of a pre-activation stands for that."
        elif isinstance(nonlinearity, SparseSelection):
            reason = "has negative latents; JumpReLU has none. Calibrate a dictionary of unsigned latents."
        else:
            reason = "is no threshold of a pre-activation; use expand_or_convert(..., nonlinearity=JumpReLU())."
        raise ConfigError(f"{name} {reason}")
    if match == "firing":
        return None
    target = nonlinearity.k if target_l0 is None and isinstance(nonlinearity, SparseSelection) else target_l0
    if target is None:
        raise ConfigError(f"{name} has no k; give calibrate a target_l0.")
    if not 0 < target <= coder.dict_size:
        size = coder.dict_size
        raise ConfigError(f"calibrate got target_l0={target}; it must be positive and at most dict_size={size}.")
    return float(target)


class _Calibration:
    """Thresholds of one coder, from the largest positive pre-activations of each row.

    A row is a latent, or all latents together. A candidate is one int64, row * 2^32 + the bits of
    the value as float32: the bits of positive floats are ordered as their values, so one sort
    orders candidates by row and value.
    """

    def __init__(self, coder: Coder, target: float | None, n_tokens: int):
        own = coder.nonlinearity
        self.coder, self.by_latent = coder, target is None
        nonlinearity = JumpReLU(**own.options()) if isinstance(own, JumpReLU) else JumpReLU()
        apart = torch.Generator()  # its draws are overwritten
        made = rebuild_like(coder, nonlinearity, dict_size=coder.dict_size, rank_by_norm=False, generator=apart)
        self._made = made.to(coder.device).float()
        weights = dict(coder.named_parameters(recurse=False))
        for name, parameter in self._made.named_parameters(recurse=False):
            parameter.copy_(weights[name])
        ranks = not self.by_latent and coder.rank_by_norm and isinstance(own, SparseSelection)
        self._norms = coder.ranking_norms() if ranks else None  # (dict_size,)
        n_rows, n_wanted = (coder.dict_size, 0) if target is None else (1, round(target * n_tokens))
        self._wanted = torch.full((n_rows,), n_wanted, device=coder.device)
        """How many values of each row are to exceed its threshold, for the tokens so far."""
        self._floor = torch.zeros(n_rows, device=coder.device)
        """The largest value of each row that was discarded."""
        self._candidates: list[Tensor] = []
        self._capacity = _CAPACITY

    def add(self, x: Float[Tensor, "batch activation_dim"]) -> None:
        """Adds tokens."""
        if self.by_latent:
            self._wanted += firing_counts(self.coder.encode_latents(x)[0])
        for part in x.split(max(1, _CHUNK_ELEMENTS // self.coder.dict_size)):
            pre = self._made.pre_activations(part)
            ranks = pre if self._norms is None else pre * self._norms
            token, latent = (ranks > self._floor).nonzero(as_tuple=True)  # (candidates,)
            bits = ranks[token, latent].view(torch.int32).long()
            self._candidates.append(bits + (latent << 32) if self.by_latent else bits)
            if sum(map(len, self._candidates)) > self._capacity:
                self._discard()

    def export(self) -> Coder:
        """Returns the coder with thresholds."""
        candidates, ends, counts = self._sorted()
        is_short = counts < self._wanted  # of candidates
        n_short = int((is_short & (self._floor > 0)).sum())
        if n_short:
            why = "since they fired more often in later activations than in earlier ones. Shuffle the activations."
            logger.warning("%d latents will fire less often than before, %s", n_short, why)
        above, below = (self._value(candidates, ends, counts, self._wanted - n) for n in (1, 0))
        above = torch.where(self._wanted > 0, above, below * _CLEAR)  # a latent that never fired: above all its values
        # between the two; where they are equal, both exceed it
        between = torch.minimum((above + below) / 2, torch.nextafter(above, torch.zeros_like(above)))
        threshold = torch.where(is_short, self._floor, between)
        jump = self._made.nonlinearity
        assert isinstance(jump, JumpReLU)
        jump.threshold.copy_(threshold if self._norms is None else threshold / self._norms)
        return self._made.to(self.coder.dtype)  # thresholds stay float32

    def _discard(self) -> None:
        """Discards candidates that cannot be next to a threshold."""
        limit = 2 * self._wanted + _RESERVE if self.by_latent else self._wanted + 1
        candidates, ends, counts = self._sorted()
        self._floor = self._value(candidates, ends, counts, limit)
        row = candidates >> 32
        rank = ends[row] - 1 - torch.arange(len(row), device=row.device)  # 0 for the largest of its row
        self._candidates = [candidates[rank < limit[row]]]
        self._capacity = max(_CAPACITY, 2 * len(self._candidates[0]))

    def _sorted(self) -> tuple[Int[Tensor, "n"], Int[Tensor, "rows"], Int[Tensor, "rows"]]:
        """Returns the candidates in order, and for each row their end and their number."""
        candidates = torch.cat(self._candidates).sort().values
        rows = torch.arange(1, len(self._wanted) + 1, device=candidates.device)
        ends = torch.searchsorted(candidates, rows << 32)
        return candidates, ends, ends.diff(prepend=ends.new_zeros(1))

    def _value(self, candidates: Tensor, ends: Tensor, counts: Tensor, rank: Tensor) -> Float[Tensor, "rows"]:
        """Returns the value at a rank of each row, from 0; the floor if there are too few."""
        padded = torch.cat([candidates, candidates.new_zeros(1)])
        bits = padded[(ends - 1 - rank).clamp(0, len(candidates))] & 0xFFFFFFFF
        return torch.where((rank >= 0) & (rank < counts), bits.int().view(torch.float32), self._floor)
