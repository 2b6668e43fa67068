"""Latents of a user's class that has an `encode` of its own.

Losses, reconstructions and measures ask a coder for sparse latents. Such a class is asked for dense
ones instead, which are made sparse, so that its own code makes them everywhere.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities import SparseSelection
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, Support

if TYPE_CHECKING:
    from dictionary_learning.dictionaries._coder import Coder


def encoded_itself(coder: "Coder", x: Tensor) -> Tensor:
    """Returns the latents (batch, dict_size) that the class itself makes of x.

    Raises:
        ConfigError: They have another shape.
    """
    latents: Any = coder.encode(x)
    if not isinstance(latents, Tensor) or latents.shape != (len(x), coder.dict_size):
        got = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ConfigError(
            f"{type(coder).__name__}.encode returned {got} for {len(x)} activations; it returns latents "
            f"({len(x)}, {coder.dict_size}) where no flag is given."
        )
    return latents


def sparse_encoded_itself(coder: "Coder", x: Tensor, k: int | None) -> SparseLatents:
    """Returns the latents that the class itself makes of those which training keeps.

    `super().encode` in the class returns these, with k latents; how many come out is its own.
    """
    nonlinearity = coder.nonlinearity
    if not isinstance(nonlinearity, SparseSelection):
        return coder.kept(x, k)  # which says that it keeps no set number
    coder.keeps = k or nonlinearity.k
    try:
        dense = encoded_itself(coder, x)
    finally:
        coder.keeps = None
    fires = dense.detach() != 0
    if nonlinearity.of_each_token:  # as many pairs of each token, among them zeros
        n = max(int(fires.sum(-1).max()) if len(x) else 0, 1)
        indices = dense.detach().abs().topk(n, dim=-1).indices  # (batch, n)
        return SparseLatents(dense.gather(-1, indices), Support(indices, coder.dict_size))
    tokens, latents = fires.nonzero(as_tuple=True)  # (pairs,)
    offsets = torch.searchsorted(tokens, torch.arange(len(x) + 1, device=x.device))
    return SparseLatents(dense[tokens, latents], Support(latents, coder.dict_size, offsets))
