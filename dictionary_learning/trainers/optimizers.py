"""What is done to gradients and weights around an optimizer's step; all in place, without waiting for the device."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn


@torch.no_grad()
def remove_parallel_gradient_(weight: nn.Parameter) -> None:
    """Removes from each row's gradient the part along the row, which would only change its norm.

    The rows have unit norm. Bricken et al. 2023, Towards Monosemanticity, "Autoencoder training".
    """
    if weight.grad is not None:
        along = torch.linalg.vecdot(weight.grad, weight)
        weight.grad.addcmul_(weight, along.unsqueeze(1), value=-1)


@torch.no_grad()
def normalize_rows_(weight: Float[Tensor, "rows columns"]) -> None:
    """Gives each row unit norm."""
    weight.div_(torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min_(torch.finfo(weight.dtype).tiny))


@torch.no_grad()
def clip_gradients_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales all gradients down so that their common norm is at most `max_norm`; returns the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients]))
    scale = (max_norm / (norm + 1e-6)).clamp_max_(1.0)
    for gradient in gradients:
        gradient.mul_(scale)
    return norm
