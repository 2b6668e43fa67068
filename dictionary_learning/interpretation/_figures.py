"""Exact figures of latents over a stream of text: how often and how strongly each is active."""

from typing import Any

import torch
from torch import Tensor

from dictionary_learning._hardware import float64
from dictionary_learning.interpretation._active import ActivePairs
from dictionary_learning.interpretation._records import LatentStatistics

BINS = 64
"""Bins of a histogram."""
_LEAST_EXPONENT, _LARGEST_EXPONENT = -120, 120
"""Of the ranges: their powers of two, times the bins, are normal numbers in float32."""


class LatentFigures:
    """Counts, sums, maxima and histograms of all latents.

    A histogram's range is not known before the end. It begins at the first power of two above the
    first activation. When an activation is beyond it, the range is doubled and every two bins
    become one, so that all counts stay exact, and do not depend on the order of the text.

    Args:
        dict_size: The number of latents.
    """

    def __init__(self, dict_size: int, device: torch.device):
        self.n_tokens = 0
        self.counts = torch.zeros(dict_size, dtype=torch.long, device=device)
        precise = torch.float32 if device.type == "mps" else torch.float64
        self.sums = torch.zeros(dict_size, dtype=precise, device=device)
        self.maxima = torch.zeros(dict_size, device=device)
        self.exponents = torch.full((dict_size,), _LEAST_EXPONENT, dtype=torch.int32, device=device)
        self.histogram = torch.zeros(dict_size, BINS, dtype=torch.int32, device=device)

    def add(self, pairs: ActivePairs, n_tokens: int) -> None:
        """Adds the active latents of some tokens."""
        self.n_tokens += n_tokens
        latents, values = pairs.latents, pairs.values
        if not len(latents):
            return
        self.counts.index_add_(0, latents, torch.ones_like(latents))
        self.sums.index_add_(0, latents, values.to(self.sums.dtype))
        self.maxima.scatter_reduce_(0, latents, values, "amax")
        self._widen(latents.unique_consecutive())
        bins = values * BINS * _power_of_two(-self.exponents[latents])
        flat = latents * BINS + bins.clamp_max(BINS - 1).long()
        self.histogram.view(-1).index_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))

    def result(self) -> LatentStatistics:
        """Returns the figures so far."""
        n = max(self.n_tokens, 1)
        mean = float64(self.sums) / self.counts.clamp_min(1).to(float64(self.sums).device)
        return LatentStatistics(
            self.n_tokens,
            (float64(self.counts) / n).float().cpu(),
            mean.float().cpu(),
            self.maxima.cpu(),
            self.histogram.long().cpu(),
            torch.where(self.counts > 0, _power_of_two(self.exponents), 0.0).cpu(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        for name, value in state.items():
            mine = getattr(self, name)
            setattr(self, name, value.to(mine.device) if isinstance(mine, Tensor) else value)

    def _widen(self, touched: Tensor) -> None:
        """Doubles the ranges of the latents whose largest activation is beyond theirs."""
        _, needed = torch.frexp(self.maxima[touched])  # maximum < 2^needed
        needed = needed.clamp_max(_LARGEST_EXPONENT)
        wider = needed > self.exponents[touched]
        latents, needed = touched[wider], needed[wider].to(torch.int32)
        shift = (needed - self.exponents[latents]).clamp_max(BINS.bit_length()).long()
        target = torch.arange(BINS, device=latents.device) >> shift.unsqueeze(1)  # (m, bins)
        old = self.histogram[latents]
        self.histogram[latents] = torch.zeros_like(old).scatter_add_(1, target, old)
        self.exponents[latents] = needed


def _power_of_two(exponent: Tensor) -> Tensor:
    """Returns 2^exponent, exactly: the bits of a float32 without a fraction."""
    return ((exponent + 127) << 23).to(torch.int32).view(torch.float32)
