"""Changes to latents: what they add to the activations is added, and nothing else is touched."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.interventions._activations import TokenMask, token_mask
from dictionary_learning.interventions._combine import reading_contexts
from dictionary_learning.interventions._wires import wired
from dictionary_learning.latents import Latents, columns_of
from dictionary_learning.models import Edit
from dictionary_learning.sites import Site

CHANGES: dict[str, Any] = {"ablate": (), "clamp": {}, "scale": {}, "add": {}}
"""The ways in which latents change, by the names of arguments, and none of each."""


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
    change = LatentChange(dictionary, ablate, clamp or {}, scale or {}, add or {})
    if dictionary.output_dim != dictionary.activation_dim:
        raise ConfigError(f"A {type(dictionary).__name__} writes another site; use edit_latents_across.")

    def edit(x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if keep is None else token_mask(keep, x)
        rows = x[mask].to(dictionary.device, dictionary.dtype)  # (n, activation_dim)
        made = dictionary.reconstruct_contexts(rows, mask.sum(-1).to(dictionary.device))
        added = change.added(dictionary, made.latents, rows)
        base = x[mask] if keep_error else made.outputs
        return with_rows(x, mask, base.to(added) + added)  # in float32 at least: no change gives the same bits

    return reading_contexts(edit, dictionary)


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
    """
    change = LatentChange(dictionary, **{**CHANGES, **changes})
    reads, writes = {read: slice(0, dictionary.activation_dim)}, {write: slice(0, dictionary.output_dim)}
    return wired(dictionary, change.added, reads, writes, keep=keep, keep_error=keep_error)


class LatentChange:
    """New values of some latents, and what they add to the activations.

    Raises:
        ConfigError: A latent does not exist, is named twice, or gets a value that is not finite.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        ablate: Sequence[int],
        clamp: Mapping[int, float],
        scale: Mapping[int, float],
        add: Mapping[int, float],
    ):
        # each is old * factor + summand
        factors = {**dict.fromkeys(ablate, (0.0, 0.0)), **{i: (float(f), 0.0) for i, f in scale.items()}}
        summands = {**{i: (0.0, float(v)) for i, v in clamp.items()}, **{i: (1.0, float(v)) for i, v in add.items()}}
        self._new = {**factors, **summands}
        named = [*ablate, *clamp, *scale, *add]
        twice = sorted({i for i in named if named.count(i) > 1})
        if twice:
            raise ConfigError(f"Latent {twice[0]} is changed in two ways; name it once.")
        for i in named:
            if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < dictionary.dict_size:
                raise ConfigError(f"Got latent {i!r}; the dictionary has latents 0 to {dictionary.dict_size - 1}.")
        for i, numbers in self._new.items():
            if not all(map(math.isfinite, numbers)):
                raise ConfigError(f"Latent {i} got the value {numbers}; give a finite number.")

    def added(self, coder: Dictionary, latents: Latents, rows: Tensor, first: int = 0) -> Tensor:
        """Returns what the change adds to the outputs (n, output_dim).

        `coder` is the dictionary, or a part of it whose latents have the numbers from `first` on.
        """
        own = {i - first: numbers for i, numbers in self._new.items() if first <= i < first + coder.dict_size}
        columns = torch.tensor(list(own), dtype=torch.long, device=coder.device)  # (m,)
        factor, summand = torch.tensor(list(own.values()), device=coder.device).view(-1, 2).unbind(1)
        old = columns_of(latents, columns)  # (n, m)
        return coder.decode_change(columns, old * (factor - 1) + summand, rows)


def with_rows(x: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """Returns activations with the given rows (n, dim) at the tokens of a mask."""
    return x.masked_scatter(mask.to(x.device).unsqueeze(-1), rows.to(x.device, x.dtype))
