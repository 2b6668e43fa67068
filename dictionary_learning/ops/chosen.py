"""Pre-activations chosen by a rule of the caller's: by groups, by size of either sign, by thresholds of their own."""

from collections.abc import Callable

import torch
from torch import Tensor

from dictionary_learning.latents import Support

Choose = Callable[[Tensor], Tensor]
"""Is given pre-activations (rows, dict_size); returns the indices of those wanted (rows, k), or a mask (rows, dict_size)."""

_CHUNK_ELEMENTS = 1 << 21
"""Pre-activations made at once: 8 MiB, which stay in the cache until they are chosen from."""
_DENSE_FROM = 1 / 24
"""The share of chosen pairs from which on dense products are faster: a step at (576, 4,608, 2,048) on a CPU takes 0.6 of the dense one
with 1/32 of the pairs, and 1.3 with 1/16."""


def chosen_pairs(x: Tensor, W: Tensor, b: Tensor, choose: Choose) -> tuple[Tensor, Support] | None:
    """Returns the chosen of x W^T + b and where they are, or None where a mask chooses so many that it does not pay.

    Args:
        x: activations (B, D).
        W: the encoder (F, D).
        b: its bias (F,).
        choose: the rule.
    """
    n_rows = max(1, _CHUNK_ELEMENTS // max(len(W), 1))
    values: list[Tensor] = []
    latents: list[Tensor] = []
    counts: list[Tensor] = []
    for rows in x.split(n_rows) if len(x) else [x]:
        pre = torch.addmm(b, rows, W.T)
        wanted = choose(pre)
        if wanted.dtype != torch.bool:
            values.append(pre.gather(1, wanted))
            latents.append(wanted)
            continue
        places = wanted.flatten().nonzero().squeeze(1)
        if len(places) > _DENSE_FROM * wanted.numel():
            return None
        values.append(pre.flatten()[places])
        latents.append(places % len(W))
        counts.append(torch.bincount(places // len(W), minlength=len(rows)))
    if not counts:
        return torch.cat(values), Support(torch.cat(latents), len(W))
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), torch.cat(counts).cumsum(0)])
    return torch.cat(values), Support(torch.cat(latents), len(W), offsets)
