"""Activations that are not finite."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def replace_nonfinite(
    x: Float[Tensor, "batch dim"],
) -> tuple[Float[Tensor, "batch dim"], Int[Tensor, ""]]:
    """Puts in place of each token that has a NaN or an infinity the last finite token before it.

    The batch keeps its size, so that no accelerator is waited for; a token counts twice instead of one being lost. If no token
    is finite, nothing is replaced.

    Returns:
        the batch, and how many tokens were replaced.
    """
    # a sum is finite only if all its terms are; finite terms whose sum overflows are past use as well
    finite = x.sum(-1, dtype=torch.promote_types(x.dtype, torch.float32)).isfinite()
    n_replaced = (~finite).sum()
    if x.device.type == "cpu" and not n_replaced:
        return x, n_replaced
    rows = torch.arange(len(x), device=x.device)
    before = torch.where(finite, rows, -1).cummax(0).values
    first = torch.where(finite, rows, len(x)).amin().clamp_max(len(x) - 1) if len(x) else rows
    return x[torch.where(before >= 0, before, first)], n_replaced
