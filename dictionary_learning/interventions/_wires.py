"""Edits of a dictionary that reads and writes several sites, in one forward pass.

A dictionary consists of coders that each read some of its inputs and add to some of its outputs. A
coder's latents are known once the model has reached all sites that it reads; what they change is
added at each later site that it writes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Dictionary, ParallelCoders, Reconstruction
from dictionary_learning.errors import ConfigError
from dictionary_learning.interventions._activations import TokenMask, token_mask
from dictionary_learning.interventions._combine import reading_contexts
from dictionary_learning.latents import Latents
from dictionary_learning.models import Edit
from dictionary_learning.sites import Site

Added = Callable[[Dictionary, Latents, Tensor, int], Tensor]
"""What a coder's latents add to its outputs; the last argument numbers its first latent."""


class Part(NamedTuple):
    """A coder, and its place in a dictionary."""

    coder: Dictionary
    first: int
    """The number of its first latent."""
    reads: slice
    writes: slice


def parts_of(dictionary: Dictionary) -> list[Part]:
    """Returns the coders of a dictionary, which may be one."""
    if isinstance(dictionary, ParallelCoders):
        return [Part(part.coder, part.latents.start, part.reads, part.writes) for part in dictionary.coders()]
    return [Part(dictionary, 0, slice(0, dictionary.activation_dim), slice(0, dictionary.output_dim))]


def known_too_late(
    dictionary: Dictionary, reads: Mapping[Site, slice], writes: Mapping[Site, slice], order: Sequence[Site]
) -> tuple[Site, Site] | None:
    """Returns a site that is written before one that its latents depend on, and that one."""
    place = {site: number for number, site in enumerate(order)}
    for part in parts_of(dictionary):
        for write in _among(writes, part.writes):
            late = [read for read in _among(reads, part.reads) if place[read] > place[write]]
            if late:
                return write, late[-1]
    return None


def wired(
    dictionary: Dictionary,
    added: Added,
    reads: Mapping[Site, slice],
    writes: Mapping[Site, slice],
    *,
    keep: TokenMask | None,
    keep_error: bool,
) -> dict[Site, Edit]:
    """Returns the edits of a forward pass that reaches what a coder reads before what it writes.

    Args:
        dictionary: The dictionary.
        added: What a change of latents adds to the outputs.
        reads: The place of each site among the inputs.
        writes: The place of each site among the outputs.
        keep: The tokens whose activations change; by default all.
        keep_error: Whether the part that the dictionary does not explain stays.
    """
    run = _Pass(dictionary, added, reads, keep)

    def at(site: Site) -> Edit:
        def edit(x: Tensor) -> Tensor | None:
            if site in reads:
                run.see(site, x)
            return run.changed(x, writes[site], keep_error) if site in writes else None

        return reading_contexts(edit, dictionary)

    return {site: at(site) for site in dict.fromkeys((*reads, *writes))}


class _Pass:
    """What is known in a forward pass so far."""

    def __init__(self, dictionary: Dictionary, added: Added, reads: Mapping[Site, slice], keep: TokenMask | None):
        self.dictionary, self._added, self._reads, self._keep = dictionary, added, reads, keep
        self._parts = parts_of(dictionary)
        self._seen: dict[Site, Tensor] = {}
        self._made: dict[int, tuple[Reconstruction, Tensor]] = {}  # by coder, with what is added

    def see(self, site: Site, x: Tensor) -> None:
        """Notes the activations (batch, ctx, dim) at a site that is read."""
        self._seen[site] = x
        for number, part in enumerate(self._parts):
            if site in _among(self._reads, part.reads):
                self._made.pop(number, None)  # of an earlier pass

    def changed(self, y: Tensor, place: slice, keep_error: bool) -> Tensor:
        """Returns the activations (batch, ctx, dim) at a site that is written."""
        mask = self._mask(y)
        made = {number: part for number, part in enumerate(self._parts) if _overlap(part.writes, place)}
        outputs, added = (
            torch.stack([_placed(self._results(n)[kind], part.writes, place) for n, part in made.items()]).sum(0)
            for kind in range(2)
        )
        b_dec: Any = self.dictionary.b_dec if isinstance(self.dictionary, ParallelCoders) else None
        if b_dec is not None:
            outputs = outputs + b_dec[place]
        added = added.to(y.device)
        base = y[mask] if keep_error else outputs
        return y.masked_scatter(mask.unsqueeze(-1), (base.to(added) + added).to(y.dtype))

    def _results(self, number: int) -> tuple[Tensor, Tensor]:
        """Returns a coder's outputs (n, output_dim) and what is added to them."""
        if number not in self._made:
            part = self._parts[number]
            sites = _among(self._reads, part.reads)
            missing = [site for site in sites if site not in self._seen]
            if missing:
                raise ConfigError(f"The model has not reached '{missing[0]}', which is read. Edit all sites together.")
            coder = part.coder
            mask = self._mask(self._seen[sites[0]])
            parts = [_own(self._seen[site], self._reads[site], part.reads) for site in sites]
            rows = torch.cat([x[mask.to(x.device)].to(coder.device, coder.dtype) for x in parts], -1)  # (n, dim)
            made = coder.reconstruct_contexts(rows, mask.sum(-1).to(coder.device))
            self._made[number] = made, self._added(coder, made.latents, rows, part.first)
        made, added = self._made[number]
        return made.outputs, added

    def _mask(self, x: Tensor) -> Tensor:
        if self._keep is None:
            return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        return token_mask(self._keep, x)


def _among(places: Mapping[Site, slice], part: slice) -> list[Site]:
    return [site for site, place in places.items() if _overlap(place, part)]


def _overlap(one: slice, other: slice) -> bool:
    return one.start < other.stop and other.start < one.stop


def _own(x: Tensor, place: slice, part: slice) -> Tensor:
    """Returns what a coder reads of the activations at a site."""
    return x[..., max(part.start - place.start, 0) : min(part.stop, place.stop) - place.start]


def _placed(outputs: Tensor, part: slice, place: slice) -> Tensor:
    """Returns what a coder adds at a site (n, dim), 0 where it does not write."""
    start, stop = max(part.start, place.start), min(part.stop, place.stop)
    own = outputs[:, start - part.start : stop - part.start]
    return torch.nn.functional.pad(own, (start - place.start, place.stop - stop))
