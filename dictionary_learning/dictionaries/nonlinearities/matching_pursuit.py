"""One latent after another, each for what the others have left."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES
from dictionary_learning.dictionaries.nonlinearities.pursuit import Pursuit
from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops.precision import no_autocast, upcast

_TAKEN = -torch.inf
_LARGEST_GRAM = 16_384
"""Latents of which the products with each other are held: 1 GiB."""


@NONLINEARITIES.register("matching_pursuit")
class MatchingPursuit(Pursuit):
    """Takes k times the latent whose direction has the largest part of what is left of x, and takes that part away.

    r = x - b_dec;  k times: i = argmax <r, d_i>,  f_i = relu(<r, d_i>),  r <- r - f_i d_i

    No latent is taken twice. The encoder is the decoder, with unit rows. Gradients flow through all of it for the
    latents taken.
    Costa et al. 2025, https://arxiv.org/abs/2506.03093.

    Args:
        k: how many latents of a token may be non-zero.
    """

    def pursue(self, residual: Float[Tensor, "batch dim"], W: Float[Tensor, "dict_size dim"], n: int) -> SparseLatents:
        with torch.no_grad(), no_autocast(residual):
            indices = taken_in_order(residual, upcast(W), n)
        values = []
        # the same rounds once more for the gradient, with width dim instead of dict_size
        for taken in indices.unbind(1):
            support = Support(taken.unsqueeze(1), len(W))
            rows = torch.nn.functional.embedding(taken, W)
            value = (residual * upcast(rows)).sum(1, keepdim=True).relu()
            residual = residual - ops.sparse_decode(SparseLatents(value, support), W)
            values.append(value)
        return SparseLatents(torch.cat(values, dim=1), Support(indices, len(W)))


def taken_in_order(residual: Float[Tensor, "batch dim"], W: Float[Tensor, "dict_size dim"], n: int) -> Tensor:
    """Returns which latents are taken, in order: (batch, n)."""
    scores = residual @ W.T
    # all latents' products with each other cost as much as rounds for dict_size tokens
    gram = W @ W.T if len(W) <= min(_LARGEST_GRAM, n * len(residual) // 2) else None
    taken = []
    for _ in range(n):
        value, index = scores.max(1)
        taken.append(index)
        if len(taken) == n:
            break
        part = value.clamp_min(0).unsqueeze(1)
        if gram is not None:
            scores.addcmul_(gram[index], part, value=-1)
        else:
            residual = residual - part * W[index]
            torch.mm(residual, W.T, out=scores)
        scores.scatter_(1, torch.stack(taken, 1), _TAKEN)
    return torch.stack(taken, 1)
