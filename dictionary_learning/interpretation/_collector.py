"""What a pass keeps of each latent of one dictionary, and how it becomes quantiles at the end."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from dictionary_learning.interpretation._active import ActivePairs
from dictionary_learning.interpretation._figures import BINS, LatentFigures
from dictionary_learning.interpretation._kept import KeptExamples, random_keys
from dictionary_learning.interpretation._quiet import QuietWindows
from dictionary_learning.interpretation._records import LatentStatistics

_OVERSAMPLED = 2
"""Active tokens that are sampled for each example of a quantile: more give truer quantiles."""


class Wanted(NamedTuple):
    """How many examples of each kind are kept, and how wide they are."""

    before: int
    after: int
    n_top: int
    n_quantiles: int
    per_quantile: int
    n_quiet: int
    seed: int

    @property
    def window(self) -> int:
        """Tokens in a window."""
        return self.before + 1 + self.after

    @property
    def n_sampled(self) -> int:
        """Active tokens of a latent that are sampled."""
        return _OVERSAMPLED * self.n_quantiles * self.per_quantile

    def bytes_for(self, dict_size: int) -> int:
        """Returns the memory that a dictionary's examples take during a pass."""
        example = 4 * self.window + 12  # activations, key, token
        return dict_size * ((self.n_top + self.n_sampled) * example + 4 * BINS + 512)


class Collector:
    """The figures and the kept examples of all latents of a dictionary.

    Exact: the figures, and the top examples. Sampled: active tokens, uniformly over the text, of
    which the quantiles are made, exact too for a latent with no more of them than are sampled; and
    the quiet windows.

    Args:
        dict_size: The number of latents.
        wanted: What is kept.
        ctx: The tokens in a context.
    """

    def __init__(self, dict_size: int, wanted: Wanted, ctx: int, device: torch.device):
        self.dict_size, self.wanted, self.ctx = dict_size, wanted, ctx
        self.figures = LatentFigures(dict_size, device)
        self.top = KeptExamples(dict_size, wanted.n_top, wanted.window, device)
        self.sample = KeptExamples(dict_size, wanted.n_sampled, wanted.window, device)
        self.quiet = QuietWindows(dict_size, wanted.n_quiet, wanted.before, wanted.after, wanted.seed, device)

    def add(self, pairs: ActivePairs, keep: Bool[Tensor, "batch ctx"], first: int) -> None:
        """Adds a batch, the first token of which has the number `first` in the text."""
        self.figures.add(pairs, int(keep.sum()))
        self.quiet.add(pairs, keep, first)
        near = self.top.candidates(pairs.latents, pairs.values)
        few = ActivePairs(*(part[near] for part in pairs))
        best = near[few.largest_of_contexts(keep.shape[1])]
        self._offer(self.top, pairs, best, pairs.values[best], first)
        keys = random_keys(self.wanted.seed, pairs.latents, pairs.places + first)
        near = self.sample.candidates(pairs.latents, keys)
        self._offer(self.sample, pairs, near, keys[near], first)

    def statistics(self) -> LatentStatistics:
        """Returns the figures of all latents."""
        return self.figures.result()

    def tensors(self, start: int, stop: int) -> dict[str, Tensor]:
        """Returns the examples of some latents as they are stored, sorted by activation."""
        wanted, rows = self.wanted, slice(start, stop)
        order = self.top.keys[rows].argsort(dim=1, descending=True, stable=True)
        top, top_windows = _taken(self.top, rows, order)
        order = quantiles(self.sample.keys[rows], self.sample.windows[rows, :, wanted.before], wanted)
        sample, sample_windows = _taken(self.sample, rows, order)
        found = {
            "top_tokens": top,
            "top_activations": top_windows,
            "quantile_tokens": sample,
            "quantile_activations": sample_windows,
            "quiet_tokens": self.quiet.of(start, stop),
        }
        return {name: tensor.contiguous().cpu() for name, tensor in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns all that was kept."""
        return {name: getattr(self, name).state_dict() for name in ("figures", "top", "sample", "quiet")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state."""
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)

    def _offer(self, kept: KeptExamples, pairs: ActivePairs, which: Tensor, keys: Tensor, first: int) -> None:
        if not len(which):
            return
        chosen, slots = kept.choose(pairs.latents[which], keys)
        pair = which[chosen]
        windows = pairs.windows(pair, self.wanted.before, self.wanted.after, self.ctx)
        kept.put(slots, keys[chosen], pairs.places[pair] + first, windows, pairs.latents[pair])


def quantiles(keys: Tensor, values: Tensor, wanted: Wanted) -> Tensor:
    """Returns which sampled tokens (latents, n) are the examples of each quantile; -1 for none.

    The sampled tokens of a latent are sorted by activation and cut into groups of equal size, the
    largest first; of each group as many as are asked for are taken at random.

    Args:
        keys: The random keys of the tokens; 0 where there is none.
        values: Their activations.
        wanted: The number of groups, and of examples in each.
    """
    there = keys > 0
    n_groups, n_each = wanted.n_quantiles, wanted.per_quantile
    rank = torch.where(there, values, -1.0).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    group = torch.where(there, rank * n_groups // there.sum(dim=1, keepdim=True).clamp_min(1), n_groups)
    by_key = keys.argsort(dim=1, descending=True, stable=True)
    order = by_key.gather(1, group.gather(1, by_key).argsort(dim=1, stable=True))  # by group, then by key
    group = group.gather(1, order)
    starts = torch.searchsorted(group, torch.arange(n_groups + 1, device=keys.device).repeat(len(group), 1))
    place = torch.arange(group.shape[1], device=keys.device) - starts.gather(1, group)
    taken = (place < n_each) & (group < n_groups)
    out = torch.full((len(keys), n_groups * n_each), -1, dtype=torch.long, device=keys.device)
    row, column = taken.nonzero(as_tuple=True)
    out[row, (group * n_each + place)[row, column]] = order[row, column]
    # within a group, too, from the largest activation
    shown = torch.where(out >= 0, values.gather(1, out.clamp_min(0)), -1.0).view(len(keys), n_groups, n_each)
    inner = shown.argsort(dim=2, descending=True, stable=True)
    return out.view_as(shown).gather(2, inner).flatten(1)


def _taken(kept: KeptExamples, rows: slice, order: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the tokens and windows of some latents in an order, in which -1 stands for none."""
    index = order.clamp_min(0)
    tokens = torch.where(order >= 0, kept.tokens[rows].gather(1, index), -1)
    windows = kept.windows[rows].gather(1, index.unsqueeze(2).expand(-1, -1, kept.windows.shape[2]))
    return tokens, windows * (tokens >= 0).unsqueeze(2)
