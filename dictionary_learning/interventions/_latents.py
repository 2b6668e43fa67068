"""Changes to latents: what they add to the activations is added, and nothing else is touched."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.interventions._activations import TokenMask, token_mask
from dictionary_learning.latents import columns_of
from dictionary_learning.models import Edit
from dictionary_learning.sites import Site


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
    change = _Change(dictionary, ablate, clamp or {}, scale or {}, add or {}, keep_error)
    if dictionary.output_dim != dictionary.activation_dim:
        raise ConfigError(f"A {type(dictionary).__name__} writes another site; use edit_latents_across.")

    def edit(x: Tensor) -> Tensor:
        return change.applied(x, x, keep)

    return edit


def edit_latents_across(
    dictionary: Dictionary, read: Site, write: Site, *, keep: TokenMask | None = None, **changes: Any
) -> dict[Site, Edit]:
    """Changes latents of a transcoder, which reads one site and writes another.

    Args:
        dictionary: The transcoder.
        read: The site that it reads.
        write: The site that it predicts, which the model reaches later.
        keep: The tokens whose activations change; by default all.
        changes: As in `edit_latents`.

    Returns:
        The edits of one forward pass.
    """
    options: dict[str, Any] = {"ablate": (), "clamp": {}, "scale": {}, "add": {}, "keep_error": True, **changes}
    change = _Change(dictionary, **options)
    seen: list[Tensor] = []

    def remember(x: Float[Tensor, "batch ctx dim"]) -> None:
        seen[:] = [x]

    def edit(y: Float[Tensor, "batch ctx dim"]) -> Tensor:
        return change.applied(seen[0], y, keep)

    return {read: remember, write: edit}


class _Change:
    """New values of some latents, and what they add to the activations."""

    def __init__(
        self,
        dictionary: Dictionary,
        ablate: Sequence[int],
        clamp: Mapping[int, float],
        scale: Mapping[int, float],
        add: Mapping[int, float],
        keep_error: bool,
    ):
        self.dictionary, self.keep_error = dictionary, keep_error
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

    def applied(self, x: Tensor, y: Tensor, keep: Tensor | None) -> Tensor:
        """Returns y (batch, ctx, dim) with the change of the latents of x at some tokens."""
        dictionary = self.dictionary
        mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device) if keep is None else token_mask(keep, x)
        rows = x[mask].to(dictionary.device, dictionary.dtype)  # (n, activation_dim)
        made = dictionary.reconstruct_contexts(rows, mask.sum(-1).to(dictionary.device))
        columns = torch.tensor(list(self._new), dtype=torch.long, device=dictionary.device)  # (m,)
        factor, summand = torch.tensor(list(self._new.values()), device=dictionary.device).view(-1, 2).unbind(1)
        old = columns_of(made.latents, columns)  # (n, m)
        added = dictionary.decode_change(columns, old * (factor - 1) + summand, rows)
        base = y[mask] if self.keep_error else made.outputs
        new = base.to(added) + added  # in float32 at least: no change gives the same bits
        return y.masked_scatter(mask.to(y.device).unsqueeze(-1), new.to(y.device, y.dtype))
