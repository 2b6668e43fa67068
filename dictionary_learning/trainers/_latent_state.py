"""States of trainers in shares of latents: what each rank saves, and any number of ranks reads.

A state is a tree of tensors and plain values. In a share, each tensor that has rows for latents is
replaced by a mapping that says which rows these are, of each coder. So shares of any division can
be joined, and other divisions made of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Trainable
from dictionary_learning.dictionaries._latent_shares import Held, bounds, held, per_latent_tensors
from dictionary_learning.errors import ConfigError
from dictionary_learning.trainers._base import Trainer

_ROWS, _OF = "rows of latents", "of coders"
"""Keys of what stands for a tensor: its rows, and [coder, start, stop] of each piece of them."""
_OF_DICTIONARY = ("tokens_since_fired", "counts", "rare", "copied")
"""Tensors of all latents of a dictionary in the state of `DeadLatents`."""
_INDICES = "indices"
"""The dead latents there, by their numbers."""
ANEW = "anew"
"""Stands for the dead latents in a state whose latents have other numbers than before."""


def state_in_share(trainer: Trainer) -> dict[str, Any]:
    """Returns the state of a trainer that holds a slice of the latents; all its ranks must ask."""
    return _in_share(trainer.state_dict(), trainer.dictionary, held(_trainable(trainer)))


def overlapping_shares(trainer: Trainer, n_shares: int) -> list[int]:
    """Returns which of the shares of a state have latents that this trainer holds."""
    spans = held(_trainable(trainer))
    places = [[bounds(span.whole, number, n_shares) for span in spans] for number in range(n_shares)]
    return [
        number
        for number, place in enumerate(places)
        if any(start < span.stop and span.start < stop for (start, stop), span in zip(place, spans, strict=True))
    ]


def state_from_shares(shares: Sequence[Any], trainer: Trainer) -> dict[str, Any]:
    """Returns the state of a trainer from shares that have all latents that it holds.

    Raises:
        ConfigError: The state of its optimizer cannot be divided otherwise.
    """
    spans = held(_trainable(trainer))
    found = _joined(shares, spans)
    if len(shares) > 1 or _latents_of(shares[0]) != [[n, *span[:2]] for n, span in enumerate(spans)]:
        _renumber_dead_(found)
    return found


def state_of_whole(state: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """Returns the state of a trainer that holds a slice, from that of one with all latents."""
    spans = held(_trainable(trainer))
    if all(span.stop - span.start == span.whole for span in spans):
        return state
    found = _joined([_in_share(state, trainer.dictionary, [Held(0, span.whole, span.whole) for span in spans])], spans)
    _renumber_dead_(found)
    return found


def _in_share(state: dict[str, Any], dictionary: Any, spans: Sequence[Held]) -> dict[str, Any]:
    pieces: dict[str, list[list[int]]] = {}
    named = [*dictionary.named_parameters(), *dictionary.named_buffers()]
    for number, part in enumerate(dictionary.coders()):
        own = {id(tensor) for _, tensor in per_latent_tensors(part.coder)}
        pieces |= {name: [[number, *spans[number][:2]]] for name, tensor in named if id(tensor) in own}
    everything = [[number, *span[:2]] for number, span in enumerate(spans)]
    names = [name for name, _ in dictionary.named_parameters()]
    marked = _marked(state, pieces, everything, names)
    return {**marked, _OF: everything}


def _latents_of(share: Mapping[str, Any]) -> list[list[int]]:
    return share[_OF]


def _trainable(trainer: Trainer) -> Trainable:
    assert isinstance(trainer.dictionary, Trainable)
    return trainer.dictionary


def _joined(shares: Sequence[Any], wanted: Sequence[Held]) -> Any:
    first = shares[0]
    if isinstance(first, Mapping):
        if _ROWS in first:
            return _rows(shares, wanted)
        found = {key: _joined([share[key] for share in shares], wanted) for key in first if key not in (_OF, _INDICES)}
        # numbers of latents differ between shares, and are found anew
        return found | {key: first[key] for key in (_INDICES,) if key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(_joined(list(parts), wanted) for parts in zip(*shares, strict=True))
    if isinstance(first, Tensor) and not all(_is_same(first, share) for share in shares[1:]):
        raise ConfigError(
            "The state of the optimizer has parts that are not of single latents, as means in 8 bits. Resume on as "
            "many ranks as before."
        )
    return first  # what all ranks have


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _renumber_dead_(state: dict[str, Any]) -> None:
    """Makes trainers look for their dead latents, which have other numbers than in the shares."""
    for component in state["components"].values():
        dead = component.get("dead")
        if isinstance(dead, dict) and dead.get(_INDICES) is not None:
            dead[_INDICES] = ANEW


def _marked(
    tree: Any, pieces: Mapping[str, list[list[int]]], everything: list[list[int]], names: Sequence[str], name: str = ""
) -> Any:
    """Returns a tree in which tensors with rows for latents say so.

    `name` is that of the parameter or buffer to which a part of the tree belongs.
    """
    if isinstance(tree, Tensor):
        rows = everything if name in _OF_DICTIONARY else pieces.get(name)
        n_rows = sum(stop - start for _, start, stop in rows or ())
        return {_ROWS: tree, _OF: rows} if rows and tree.shape[:1] == (n_rows,) else tree
    if isinstance(tree, Mapping):

        def inside(key: Any) -> str:
            if isinstance(key, int):
                return names[key]
            return key if key in pieces or key in _OF_DICTIONARY else name

        return {key: _marked(value, pieces, everything, names, inside(key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_marked(value, pieces, everything, names, name) for value in tree]
    return tree


def _rows(shares: Sequence[Mapping[str, Any]], wanted: Sequence[Held]) -> Tensor:
    """Returns the wanted rows of a tensor: of one coder, or of all of them."""
    found: list[Tensor] = []
    for number in sorted({number for share in shares for number, *_ in share[_OF]}):
        parts: list[tuple[int, Tensor]] = []
        for share in shares:
            at = 0
            for coder, start, stop in share[_OF]:
                if coder == number:
                    parts.append((start, share[_ROWS][at : at + stop - start]))
                at += stop - start
        parts.sort(key=lambda part: part[0])
        together, first = torch.cat([rows for _, rows in parts]), parts[0][0]
        found.append(together[wanted[number].start - first : wanted[number].stop - first])
    return torch.cat(found)
