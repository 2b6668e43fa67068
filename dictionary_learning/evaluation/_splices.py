"""The edits of the forward passes that measure what predictions lose."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from dictionary_learning.data import TokenBatch
from dictionary_learning.evaluation._candidates import PlacedCandidate
from dictionary_learning.evaluation._config import EvaluationConfig
from dictionary_learning.interventions import graft, graft_across
from dictionary_learning.interventions._activations import putting
from dictionary_learning.models import Edit, TracedModel
from dictionary_learning.sites import Site


def n_passes(places: Sequence[tuple[tuple[Site, ...], tuple[Site, ...]]], config: EvaluationConfig) -> int:
    """Returns the forward passes of each batch on which predictions are measured.

    Args:
        places: The sites that each dictionary reads, and those that it writes.
        config: What is measured.
    """
    sites = {site for place in places for side in place for site in side}
    # several sites are read first, and each is then replaced by itself
    own = [1 if len(reads) == len(writes) == 1 else 1 + len(writes) for reads, writes in places]
    together = sets_of_sites([writes for _, writes in places]) if config.together else []
    read_again = sum(own[number] > 1 for numbers in together for number in numbers)
    return 1 + sum(own) + len(together) + read_again + len(sites) * len(config.ablations)


def inputs_of(placed: PlacedCandidate, values: Mapping[Site, Tensor], sites: Sequence[Site]) -> Tensor:
    """Returns the activations of several sites, concatenated in the last dimension."""
    dictionary = placed.dictionary
    parts = [values[site].to(dictionary.device, dictionary.dtype) for site in sites]  # each (..., dim)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def splices(
    model: TracedModel,
    placed: PlacedCandidate,
    tokens: TokenBatch,
    keep: Bool[Tensor, "batch ctx"],
    widths: Mapping[Site, int],
) -> Iterator[Mapping[Site, Edit]]:
    """Yields the edits of each forward pass that measures a dictionary."""
    if placed.reads == placed.writes and len(placed.reads) == 1:
        yield {placed.reads[0]: graft(placed.dictionary, keep)}  # an autoencoder
    elif len(placed.reads) == len(placed.writes) == 1:
        yield graft_across(placed.dictionary, placed.reads[0], placed.writes[0], keep)  # a transcoder, in one pass
    else:
        # all sites are read from the original model, then each is replaced in a pass of its own
        for site, value in _written(model, placed, tokens, widths).items():
            yield {site: putting(value, keep)}


def splice_together(
    model: TracedModel,
    several: Sequence[PlacedCandidate],
    tokens: TokenBatch,
    keep: Bool[Tensor, "batch ctx"],
    widths: Mapping[Site, int],
) -> dict[Site, Edit]:
    """Returns the edits of one forward pass with several dictionaries.

    Each reads what the dictionaries before it leave of the model's activations, but for those that
    read several sites, which read the original model.
    """
    writers: dict[Site, list[Edit]] = {}
    readers: dict[Site, list[Edit]] = {}
    for placed in several:
        if placed.reads == placed.writes and len(placed.reads) == 1:
            writers.setdefault(placed.reads[0], []).append(graft(placed.dictionary, keep))
        elif len(placed.reads) == len(placed.writes) == 1:
            edits = graft_across(placed.dictionary, placed.reads[0], placed.writes[0], keep)
            readers.setdefault(placed.reads[0], []).append(edits[placed.reads[0]])
            writers.setdefault(placed.writes[0], []).append(edits[placed.writes[0]])
        else:
            for site, value in _written(model, placed, tokens, widths).items():
                writers.setdefault(site, []).append(putting(value, keep))
    # what is written is what a later dictionary reads
    return {site: _in_order([*writers.get(site, []), *readers.get(site, [])]) for site in {**writers, **readers}}


def sets_of_sites(written: Sequence[tuple[Site, ...]]) -> list[tuple[int, ...]]:
    """Returns sets of dictionaries, by number, that can be spliced in at once, by what each writes.

    The first dictionary of each site makes the first set, the second of each the next. A set of one
    is none.
    """
    by_site: dict[tuple[Site, ...], list[int]] = {}
    for number, writes in enumerate(written):
        by_site.setdefault(writes, []).append(number)
    sets: list[tuple[int, ...]] = []
    for turn in range(max(map(len, by_site.values()), default=0)):
        taken: set[Site] = set()
        chosen: list[int] = []
        for writes, numbers in by_site.items():
            # a crosscoder may write a site that another dictionary writes alone
            if turn < len(numbers) and not taken & set(writes):
                chosen.append(numbers[turn])
                taken |= set(writes)
        if len(chosen) > 1:
            sets.append(tuple(sorted(chosen)))
    return sets


def _written(
    model: TracedModel, placed: PlacedCandidate, tokens: TokenBatch, widths: Mapping[Site, int]
) -> dict[Site, Tensor]:
    """Returns what a dictionary of several sites writes, from the original model's activations."""
    outputs = placed.dictionary(inputs_of(placed, model.capture(*tokens, placed.reads), placed.reads))
    parts = outputs.split([widths[site] for site in placed.writes], dim=-1)
    return dict(zip(placed.writes, parts, strict=True))


def _in_order(edits: Sequence[Edit]) -> Edit:
    def edit(x: Tensor) -> Tensor:
        for one in edits:
            changed = one(x)
            x = x if changed is None else changed
        return x

    return edit
