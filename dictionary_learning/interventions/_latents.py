"""Changes to latents: what they add to the activations is added, and nothing else is touched."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from dictionary_learning._border import checked, short
from dictionary_learning._coercion import coerce
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.interventions._activations import (
    TokenMask,
    check_apart,
    check_keep,
    check_reads_what_it_writes,
    token_mask,
)
from dictionary_learning.interventions._combine import reading_contexts
from dictionary_learning.interventions._wires import wired
from dictionary_learning.latents import Latents, columns_of
from dictionary_learning.models import Edit
from dictionary_learning.sites import Site

CHANGES: dict[str, Any] = {"ablate": (), "clamp": {}, "scale": {}, "add": {}}
"""The ways in which latents change, by the names of arguments, and none of each."""


@checked()
def edit_latents(
    dictionary: Dictionary,
    *,
    ablate: Sequence[int] = (),
    clamp: Mapping[int, float] | None = None,
    scale: Mapping[int, float] | None = None,
    add: Mapping[int, float] | None = None,
    keep_error: bool = True,
    keep: TokenMask | None = None,
) -> Edit:
    """Changes latents of an autoencoder, at the site that it reads.

    x <- x + decode(f') - decode(f)

    Here f are the latents of x and f' the changed ones. What the dictionary does not explain stays;
    without `keep_error`, x becomes decode(f'). All values are activations of latents.

    Args:
        dictionary: The dictionary.
        ablate: Latents that become 0.
        clamp: Latents that get a value, on every token.
        scale: Factors of latents, where they are active.
        add: What is added to latents, on every token.
        keep_error: Whether the part that the dictionary does not explain stays.
        keep: The tokens whose activations change; by default all.

    Raises:
        ConfigError: A latent does not exist, or is named twice; or the dictionary reconstructs
            other activations than it reads.
    """
    check_keep(keep)
    change = LatentChange(dictionary, ablate, clamp or {}, scale or {}, add or {})
    check_reads_what_it_writes(dictionary, "latent_edits(model, dictionary, ...) or edit_latents_across")

    def edit(x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if keep is None else token_mask(keep, x)
        rows = x[mask].to(dictionary.device, dictionary.dtype)  # (n, activation_dim)
        made = dictionary.reconstruct_contexts(rows, mask.sum(-1).to(dictionary.device))
        added = change.added(dictionary, made.latents, rows)
        base = x[mask] if keep_error else made.outputs
        return with_rows(x, mask, base.to(added) + added)  # in float32 at least: no change gives the same bits

    return reading_contexts(edit, dictionary)


@checked()
def edit_latents_across(
    dictionary: Dictionary,
    read: Site,
    write: Site,
    *,
    keep: TokenMask | None = None,
    keep_error: bool = True,
    **changes: Any,
) -> dict[Site, Edit]:
    """Changes latents of a transcoder, which reads one site and writes another.

    Args:
        dictionary: The transcoder.
        read: The site that it reads.
        write: The site that it predicts, which the model reaches later.
        keep: The tokens whose activations change; by default all.
        keep_error: Whether the part that the dictionary does not explain stays.
        changes: As in `edit_latents`.

    Returns:
        The edits of one forward pass.

    Raises:
        ConfigError: A change is unknown, or as in `edit_latents`; both sites are the same; or, in
            the pass, the model reaches `write` first.
    """
    check_keep(keep)
    check_apart(read, write, "edit_latents")
    change = change_of(dictionary, changes)
    reads, writes = {read: slice(0, dictionary.activation_dim)}, {write: slice(0, dictionary.output_dim)}
    return wired(dictionary, change.added, reads, writes, keep=keep, keep_error=keep_error)


def change_of(dictionary: Dictionary, changes: Mapping[str, Any]) -> "LatentChange":
    """Returns the change that is described by the arguments `ablate`, `clamp`, `scale` and `add`.

    Raises:
        UnknownNameError: One has another name.
        ConfigError: As `LatentChange`.
    """
    for name in changes:
        if name not in CHANGES:
            raise UnknownNameError("change of latents", name, CHANGES)
    return LatentChange(dictionary, **{**CHANGES, **{n: v for n, v in changes.items() if v is not None}})


class LatentChange:
    """New values of some latents, and what they add to the activations.

    Raises:
        ConfigError: A latent does not exist, is named twice, or gets a value that is no number, or
            not finite in the dictionary's dtype.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        ablate: Sequence[int],
        clamp: Mapping[int, float],
        scale: Mapping[int, float],
        add: Mapping[int, float],
    ):
        gone = _numbers_of(dictionary, ablate)
        values = {
            name: _values_of(dictionary, name, given)
            for name, given in (("clamp", clamp), ("scale", scale), ("add", add))
        }
        # each is old * factor + summand
        self._new = {
            **dict.fromkeys(gone, (0.0, 0.0)),
            **{i: (0.0, value) for i, value in values["clamp"].items()},
            **{i: (factor, 0.0) for i, factor in values["scale"].items()},
            **{i: (1.0, value) for i, value in values["add"].items()},
        }
        named = [*gone, *(i for each in values.values() for i in each)]
        if len(named) > len(self._new):
            twice = min(i for i in self._new if named.count(i) > 1)
            raise ConfigError(f"Latent {twice} is changed in two ways; name it once.")

    def added(self, coder: Dictionary, latents: Latents, rows: Tensor, first: int = 0) -> Tensor:
        """Returns what the change adds to the outputs (n, output_dim).

        `coder` is the dictionary, or a part of it whose latents have the numbers from `first` on.
        """
        own = {i - first: numbers for i, numbers in self._new.items() if first <= i < first + coder.dict_size}
        columns = torch.tensor(list(own), dtype=torch.long, device=coder.device)  # (m,)
        dtype = torch.promote_types(coder.dtype, torch.float32)
        factor, summand = torch.tensor(list(own.values()), dtype=dtype, device=coder.device).view(-1, 2).unbind(1)
        old = columns_of(latents, columns)  # (n, m)
        return coder.decode_change(columns, old * (factor - 1) + summand, rows)


def _numbers_of(dictionary: Dictionary, given: Any) -> list[int]:
    if isinstance(given, (str, bytes)) or not isinstance(given, (Sequence, Set)):
        raise ConfigError(f"Got ablate={short(given)}; give a list of latents, such as [12, 40].")
    return [_latent(dictionary, i) for i in given]


def _values_of(dictionary: Dictionary, name: str, given: Any) -> dict[int, float]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"Got {name}={short(given)}; give values by latent, such as {{12: 5.0}}.")
    most, found = torch.finfo(dictionary.dtype).max, dict[int, float]()
    for i, value in given.items():
        try:
            number: float = coerce(value, float)
        except (TypeError, ValueError, RuntimeError):
            raise ConfigError(f"Got {name}={{{i!r}: {short(value)}}}; the value of a latent is a number.") from None
        if not abs(number) <= most:
            raise ConfigError(f"Got {name}={{{i!r}: {number}}}; a finite number is needed, at most {most:.3g}.")
        found[_latent(dictionary, i)] = number
    return found


def _latent(dictionary: Dictionary, given: Any) -> int:
    try:
        found: int = coerce(given, int)
    except (TypeError, ValueError, RuntimeError):
        found = -1
    if not 0 <= found < dictionary.dict_size:
        raise ConfigError(f"Got latent {given!r}; the dictionary has latents 0 to {dictionary.dict_size - 1}.")
    return found


def with_rows(x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """Returns activations with the given rows (n, dim) at the tokens of a mask."""
    return x.masked_scatter(mask.to(x.device).unsqueeze(-1), rows.to(x.device, x.dtype))
