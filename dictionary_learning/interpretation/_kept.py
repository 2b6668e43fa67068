"""For each latent the examples with the largest keys so far, in memory of a fixed size."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MASKS = {30: (1 << 34) - 1, 27: (1 << 37) - 1, 31: (1 << 33) - 1, 1: (1 << 63) - 1}
"""What an arithmetic shift of 64 bits keeps of a logical one."""


class KeptExamples:
    """The n examples of each latent with the largest keys, which are above 0.

    Keys are activations, for the top examples, or random numbers, for a uniform sample of all
    tokens where a latent is active, however many there are ("bottom-k sampling").

    Args:
        dict_size: The number of latents.
        n: The number of examples of each.
        window: The number of tokens in a window.
    """

    def __init__(self, dict_size: int, n: int, window: int, device: torch.device):
        self.n = n
        self.keys = torch.zeros(dict_size, n, device=device)
        """0 where there is no example yet."""
        self.tokens = torch.full((dict_size, n), -1, dtype=torch.long, device=device)
        """The number of the token in the text that was read."""
        self.windows = torch.zeros(dict_size, n, window, device=device)
        self._least = torch.zeros(dict_size, device=device)

    def candidates(self, latents: Int[Tensor, "m"], keys: Float[Tensor, "m"]) -> Int[Tensor, "c"]:
        """Returns which of some examples may be kept: their keys are larger than the least ones."""
        return (keys > self._least[latents]).nonzero().squeeze(1)

    def choose(self, latents: Int[Tensor, "c"], keys: Float[Tensor, "c"]) -> tuple[Tensor, Tensor]:
        """Returns which candidates are kept, and their slots (latent * n + slot).

        Args:
            latents: The latent of each candidate.
            keys: The key of each.
        """
        best = keys.argsort(descending=True, stable=True)
        best = best[latents[best].argsort(stable=True)]  # by latent, then from the largest key
        latents = latents[best]
        _, row, counts = torch.unique_consecutive(latents, return_inverse=True, return_counts=True)
        column = torch.arange(len(latents), device=latents.device) - (counts.cumsum(0) - counts)[row]
        few = (column < self.n).nonzero().squeeze(1)  # one latent may have many more candidates than the others
        best, row, column, touched = best[few], row[few], column[few], latents.unique_consecutive()
        m = min(int(counts.max()), self.n)
        # places without a candidate are below those without an example, so they are never kept
        new = torch.full((len(touched), m), -1.0, device=keys.device)
        new[row, column] = keys[best]
        which = torch.full((len(touched), m), -1, dtype=torch.long, device=keys.device)
        which[row, column] = best
        both = torch.cat([self.keys[touched], new], dim=1)  # (touched, n + m)
        chosen = torch.zeros_like(both, dtype=torch.bool)
        chosen.scatter_(1, both.topk(self.n, dim=1).indices, True)
        # as many slots are free as candidates are kept, row by row in the same order
        free, slot = (~chosen[:, : self.n]).nonzero(as_tuple=True)
        kept = which[chosen[:, self.n :]]
        return kept, touched[free] * self.n + slot

    def put(self, slots: Tensor, keys: Tensor, tokens: Tensor, windows: Tensor, latents: Tensor) -> None:
        """Stores the examples that were chosen."""
        self.keys.view(-1)[slots] = keys
        self.tokens.view(-1)[slots] = tokens
        self.windows.view(-1, self.windows.shape[-1])[slots] = windows
        touched = latents.unique()
        self._least[touched] = self.keys[touched].amin(dim=1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the examples."""
        return {"keys": self.keys, "tokens": self.tokens, "windows": self.windows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        self.keys.copy_(state["keys"])
        self.tokens.copy_(state["tokens"])
        self.windows.copy_(state["windows"])
        self._least = self.keys.amin(dim=1)


def random_keys(seed: int, *numbers: Tensor) -> Tensor:
    """Returns a random number above 0 of each combination of numbers, always the same.

    They depend on no order, so batches of other sizes give the same sample. It is 1 / u for a
    uniform u: the largest, on which all depends, are as precise as the others.
    """
    mixed = torch.full_like(numbers[0], seed)
    for number in numbers:
        mixed = _mixed(mixed + number)
    uniform = (_shifted(mixed, 1).double() + 1) / 2.0**63
    return (1 / uniform).float()


def _mixed(z: Tensor) -> Tensor:
    """Returns SplitMix64's finalizer of each number (Steele et al. 2014)."""
    z = z + (0x9E3779B97F4A7C15 - (1 << 64))
    z = (z ^ _shifted(z, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    z = (z ^ _shifted(z, 27)) * (0x94D049BB133111EB - (1 << 64))
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & _MASKS[bits]
