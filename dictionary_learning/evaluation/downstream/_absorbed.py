"""Where latents that should fire for a concept are silent, and others carry it.

Chanin et al. 2024, https://arxiv.org/abs/2409.14507, in the form of SAEBench 0.6, which needs no
ablation: the share of a probe's projection that latents carry stands for their effect.

    projection of latent i on token t = f_i(t) <d_i, p>,    p the probe's direction, of norm 1
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SILENT = 1e-8
"""Activation from which a latent is active."""
LEAST_COSINE = 0.025
"""Cosine of decoder and probe that a latent needs to have absorbed a token alone."""
LEAST_COSINE_TOGETHER = 0.1
"""The same where several latents may share it."""
LEAST_SHARE = 0.4
"""Share of the token's projection that absorbing latents carry."""
MOST_TOGETHER = 3
"""Latents that may share it."""


class Absorbed(NamedTuple):
    """For each token whether it is absorbed by one latent, and how much by several."""

    is_full: Bool[Tensor, "n"]
    fraction: Float[Tensor, "n"]


def absorbed(
    latents: Float[Tensor, "n dict_size"],
    x: Float[Tensor, "n dim"],
    decoder: Float[Tensor, "dict_size dim"],
    probe: Float[Tensor, "dim"],
    main: Sequence[int],
) -> Absorbed:
    """Returns which tokens of a concept are absorbed.

    Full absorption: all main latents are silent, the latent of the largest projection has a cosine
    of at least 0.025 with the probe, the token's projection is positive, and the latent carries at
    least 0.4 of it.

    Fraction: a / (a + m), with m the projection of the main latents, and a that of the up to three
    largest others whose cosine is at least 0.1, at most what m leaves of the token's. It is 0 where
    these carry less than 0.4 of the token's projection, or m all of it; 1 where m is not positive.

    Args:
        latents: of tokens that have the concept.
        x: their activations.
        decoder: a direction for each latent.
        probe: the direction of the concept.
        main: the latents that stand for it.
    """
    p = probe / probe.norm()
    projections = latents * (decoder @ p)  # (n, dict_size)
    cosines = torch.nn.functional.cosine_similarity(decoder, p.unsqueeze(0), dim=1)  # (dict_size,)
    total = x @ p  # (n,)
    chosen = torch.tensor(list(main), dtype=torch.long, device=latents.device)
    largest, which = projections.max(dim=1)
    silent = (latents[:, chosen].abs() < SILENT).all(dim=1)
    is_full = silent & (cosines[which] >= LEAST_COSINE) & (total > 0) & (largest >= LEAST_SHARE * total)
    return Absorbed(is_full, _fraction(projections, cosines, total, chosen))


def _fraction(projections: Tensor, cosines: Tensor, total: Tensor, main: Tensor) -> Float[Tensor, "n"]:
    own = projections[:, main].sum(1)  # (n,)
    may = cosines >= LEAST_COSINE_TOGETHER
    may[main] = False
    others = (projections * may).clamp_min(0)
    together = others.topk(min(MOST_TOGETHER, others.shape[1]), dim=1).values.sum(1)
    carried = torch.minimum(together, total - own)
    share = torch.where(own <= 0, torch.ones_like(own), carried / (carried + own))
    counts = (total > 0) & (own < total) & (together >= LEAST_SHARE * total)
    return torch.where(counts, share, torch.zeros_like(share)).clamp(0, 1)
