"""Which tokens belong together: those of a document, which error bars resample as one."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from dictionary_learning.data import TokenBatch

MOST_GROUPS = 1024
"""Groups of documents whose sums are kept: a bootstrap over more is no better."""


class DocumentGroups(NamedTuple):
    """The group of each token of some batches."""

    by_batch: tuple[Tensor, ...]
    """For each batch the group of each token, (batch, ctx); of padding any."""
    documents: Int[Tensor, "groups"]
    """The number in the source of the first document of each group."""
    n_documents: int


def group_documents(batches: Sequence[TokenBatch], most: int = MOST_GROUPS) -> DocumentGroups:
    """Groups documents in the order in which they are read, however they fall into batches.

    A group is one document, or several in a row where there are more than `most`. Contexts of
    unknown origin are a document each.
    """
    seen: dict[int, int] = {}  # from a document to its place in the order
    places: list[Tensor] = []
    n_contexts = 0
    for tokens in batches:
        numbers = tokens.document
        if numbers is None:
            own = torch.arange(n_contexts, n_contexts + len(tokens.input_ids))
            numbers = own.unsqueeze(1).expand(tokens.input_ids.shape)
        n_contexts += len(tokens.input_ids)
        mask = tokens.attention_mask.cpu()
        runs = torch.unique_consecutive(numbers.cpu()[mask]).tolist()
        for number in runs:
            seen.setdefault(number, len(seen))
        known = torch.tensor(sorted(set(runs)) or [0])
        order = torch.tensor([seen.get(number, 0) for number in known.tolist()])
        place = order[torch.searchsorted(known, numbers.cpu().contiguous()).clamp_max(len(known) - 1)]
        places.append(place.masked_fill(~mask, 0))  # (batch, ctx)
    stride = max(1, -(-len(seen) // most))
    return DocumentGroups(
        tuple(place // stride for place in places), torch.tensor(list(seen)[::stride], dtype=torch.long), len(seen)
    )


def digest_of(batches: Iterable[TokenBatch]) -> str:
    """Returns a checksum of the ids of all contexts; padding and batches do not change it."""
    digest = hashlib.sha256()
    for tokens in batches:
        for ids, mask in zip(tokens.input_ids.cpu(), tokens.attention_mask.cpu(), strict=True):
            digest.update(b"|" + ids[mask].numpy().tobytes())
    return digest.hexdigest()


def digest_of_masks(batches: Sequence[TokenBatch], masks: Sequence[Tensor]) -> str:
    """Returns a checksum of which tokens of the contexts are in masks."""
    digest = hashlib.sha256()
    for tokens, keep in zip(batches, masks, strict=True):
        for kept, mask in zip(keep.cpu(), tokens.attention_mask.cpu(), strict=True):
            digest.update(b"|" + kept[mask].numpy().tobytes())
    return digest.hexdigest()
