"""Activations of other tokens, which take the place of a token's own."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dictionary_learning.interventions._activations import putting
from dictionary_learning.models import Edit
from dictionary_learning.sites import Site

_SIZE = 1024
"""Tokens that activations are drawn from."""


class ResamplePool:
    """A random sample of tokens' activations, the same however tokens fall into batches.

    Args:
        seed: of the sample, and of what is drawn from it.
    """

    def __init__(self, seed: int):
        # NumPy's numbers do not depend on how many are drawn at a time
        self._priorities, self._draws = (np.random.default_rng(s) for s in np.random.SeedSequence(abs(seed)).spawn(2))
        self._kept = torch.zeros(0, dtype=torch.float64)
        self._rows: dict[Site, Tensor] = {}

    def add(self, rows: Mapping[Site, Float[Tensor, "n dim"]]) -> None:
        """Offers the activations of some tokens at each site."""
        n = len(next(iter(rows.values())))
        priorities = torch.cat([self._kept, torch.from_numpy(self._priorities.random(n))])
        self._kept, chosen = priorities.sort(stable=True)
        self._kept, chosen = self._kept[:_SIZE], chosen[:_SIZE]
        for site, x in rows.items():
            known = torch.cat([self._rows[site], x]) if site in self._rows else x
            self._rows[site] = known[chosen.to(x.device)]

    def edits(self, keep: Bool[Tensor, "batch ctx"]) -> dict[Site, Edit]:
        """Returns for each site the edit that replaces tokens by random ones, the same at all."""
        n = int(keep.sum())
        drawn = torch.from_numpy((self._draws.random(n) * len(self._kept)).astype(np.int64))
        places = torch.zeros(keep.shape, dtype=torch.long)
        places[keep.cpu()] = drawn
        return {site: putting(rows[places.to(rows.device)], keep) for site, rows in self._rows.items()}
