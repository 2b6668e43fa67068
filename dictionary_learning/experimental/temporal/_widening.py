"""Temporal dictionaries with more latents, or with another k."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning.dictionaries._initialization import unit_rows
from dictionary_learning.experimental.temporal._dictionary import ContextAttention, TemporalAutoencoder


@torch.no_grad()
def widened(
    dictionary: TemporalAutoencoder, dict_size: int, k: int | None, generator: torch.Generator | None = None
) -> TemporalAutoencoder:
    """Returns a float32 copy with more latents after the existing ones.

    Attention predicts the existing latents as before, without the new ones. New rows have the mean
    norm of the existing rows.

    Args:
        dictionary: A temporal dictionary, which is not changed.
        dict_size: Number of latents, at least that of the dictionary.
        k: Novel latents per token; None for ReLU.
        generator: Draws the directions of new latents; None for the global generator.

    Raises:
        ConfigError: dict_size is not a multiple of n_heads * bottleneck_factor.
    """
    options: dict[str, Any] = {**dictionary.options(), "dict_size": dict_size, "k": k}
    made = TemporalAutoencoder(**options, generator=generator)
    made = made.to(dictionary.device)
    n_old, dim = dictionary.dict_size, dictionary.activation_dim
    directions = unit_rows(dict_size - n_old, dim, generator).to(dictionary.device)
    for name in ("W_dec",) if dictionary.tied else ("W_dec", "W_enc"):
        own, old = getattr(made, name), getattr(dictionary, name).float()
        own[:n_old], own[n_old:] = old, directions * old.norm(dim=1).mean()
    made.b_dec.copy_(dictionary.b_dec)
    for own, old in zip(made.attn_layers, dictionary.attn_layers, strict=True):
        assert isinstance(own, ContextAttention) and isinstance(old, ContextAttention)
        _copy_(own, old)
    return made


def _copy_(own: ContextAttention, old: ContextAttention) -> None:
    """Copies attention over fewer latents into attention over more, whose heads are longer."""
    heads = own.n_heads
    wide, wide_before = own.v_ctx.out_features, old.v_ctx.out_features
    values = _places(heads, wide, wide_before)
    scores = _places(heads, own.k_ctx.out_features, old.k_ctx.out_features)
    # attention divides scores by the root of the key length, which is larger now
    longer = math.sqrt(own.k_ctx.out_features / old.k_ctx.out_features)
    own.v_ctx.weight[:, wide_before:] = 0  # attention reads nothing from new latents
    own.k_ctx.weight.zero_()
    own.q_target.weight.zero_()
    for mine, theirs, rows, factor in (
        (own.v_ctx, old.v_ctx, values, 1.0),
        (own.k_ctx, old.k_ctx, scores, 1.0),
        (own.q_target, old.q_target, scores, longer),
    ):
        mine.weight[rows, :wide_before] = theirs.weight.float() * factor
        mine.bias.zero_()
        mine.bias[rows] = theirs.bias.float() * factor
    _copy_output_(own.c_proj, old.c_proj, values)


def _copy_output_(own: nn.Linear, old: nn.Linear, read: Tensor) -> None:
    n_old = old.out_features
    own.weight[:n_old] = 0
    own.weight[:n_old, read] = old.weight.float()
    own.bias.zero_()
    own.bias[:n_old] = old.bias.float()


def _places(heads: int, size: int, before: int) -> Tensor:
    """Returns the indices of the entries of shorter heads among those of longer heads."""
    return torch.arange(size).view(heads, -1)[:, : before // heads].flatten()
