"""Random windows of text, and which latents are active in each: where others are quiet."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dictionary_learning.interpretation._active import ActivePairs
from dictionary_learning.interpretation._kept import random_keys

_LEAST = 256
"""Windows that are kept: a latent that is active in nine of ten has quiet ones among them."""
_PER_EXAMPLE = 8


class QuietWindows:
    """A uniform sample of the windows of a text; each latent has its quiet ones among them.

    Args:
        dict_size: The number of latents.
        n: The number of quiet windows that each latent should get.
        before: Tokens of a window before the one that is drawn; `after` is the same after it.
        seed: Of the sample.
    """

    def __init__(self, dict_size: int, n: int, before: int, after: int, seed: int, device: torch.device):
        self.n, self.before, self.after, self.seed = n, before, after, seed
        size = max(_LEAST, _PER_EXAMPLE * n) if n else 0
        self.keys = torch.zeros(size, device=device)
        self.tokens = torch.full((size,), -1, dtype=torch.long, device=device)
        self.active = torch.zeros(size, dict_size, dtype=torch.bool, device=device)

    def add(self, pairs: ActivePairs, keep: Bool[Tensor, "batch ctx"], first: int) -> None:
        """Adds the windows of a batch, the first token of which has the number `first`."""
        if not self.n:
            return
        ctx, device = keep.shape[1], self.keys.device
        places = keep.flatten().nonzero().squeeze(1).to(device)  # (n,)
        keys = random_keys(self.seed, places + first)
        near = (keys > self.keys.amin()).nonzero().squeeze(1)
        size = len(self.keys)
        chosen = torch.cat([self.keys, keys[near]]).topk(size).indices
        is_new = torch.zeros(size + len(near), dtype=torch.bool, device=device)
        is_new[chosen] = True
        slots, new = (~is_new[:size]).nonzero().squeeze(1), near[is_new[size:]]
        self.keys[slots], self.tokens[slots] = keys[new], places[new] + first
        self.active[slots] = False
        window, place = self._places(places[new], ctx)
        covered = torch.zeros(keep.numel(), dtype=torch.bool, device=device)
        covered[place] = True
        near = covered[pairs.places].nonzero().squeeze(1)  # few, once many tokens have been read
        at, order = pairs.places[near].sort()
        begin, end = (torch.searchsorted(at, place, right=right) for right in (False, True))
        n = end - begin  # active latents of each place of a window
        offset = torch.arange(int(n.sum()), device=device) - (n.cumsum(0) - n).repeat_interleave(n)
        found = near[order[begin.repeat_interleave(n) + offset]]
        self.active[slots[window].repeat_interleave(n), pairs.latents[found]] = True

    def of(self, start: int, stop: int) -> Int[Tensor, "latents n"]:
        """Returns the drawn tokens of quiet windows of some latents; -1 where there are too few."""
        if not self.n:
            return self.tokens.new_zeros(stop - start, 0)
        latents = torch.arange(start, stop, device=self.keys.device)
        keys = random_keys(self.seed, latents.unsqueeze(1), self.tokens.unsqueeze(0))  # (latents, windows)
        keys = torch.where(self.active[:, start:stop].T | (self.tokens < 0), 0.0, keys)
        best = keys.topk(self.n, dim=1)
        return torch.where(best.values > 0, self.tokens[best.indices], -1)

    def _places(self, drawn: Tensor, ctx: int) -> tuple[Tensor, Tensor]:
        """Returns the tokens of windows, each with the number of its window."""
        place = drawn.unsqueeze(1) + torch.arange(-self.before, self.after + 1, device=drawn.device)
        window, column = (place.div(ctx, rounding_mode="floor") == drawn.unsqueeze(1) // ctx).nonzero(as_tuple=True)
        return window, place[window, column]

    def state_dict(self) -> dict[str, Any]:
        """Returns the windows."""
        return {"keys": self.keys, "tokens": self.tokens, "active": self.active}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        for name in ("keys", "tokens", "active"):
            getattr(self, name).copy_(state[name])
