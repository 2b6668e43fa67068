"""One product for the encoders of several dictionaries on the same activations.

W_i (x - c_i) + b_i = W_i (x - c) + (b_i - W_i (c_i - c)): with one center c for all, the encoders are one matrix. Selection looks its
part of the product up; what is kept is computed again exactly, with the dictionary's own center, as without this.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dictionary_learning.hardware import bfloat16_is_fast
from dictionary_learning.ops.encoder import Encoder
from dictionary_learning.ops.finite import replace_nonfinite
from dictionary_learning.ops.precision import no_autocast, upcast

_MOST_LATENTS = 16_384
"""In the largest dictionary. One with more keeps a GPU busy by itself; on a CPU a product of 512 latents is as fast, for each
latent, as one of many (measured: docs/performance.md)."""

_products: contextvars.ContextVar[dict[int, Tensor] | None] = contextvars.ContextVar("products", default=None)


def is_worthwhile(x: Tensor, encoders: Sequence[Encoder]) -> bool:
    """Tells whether one product for all is faster than one for each."""
    return x.device.type == "cuda" and len(encoders) > 1 and max(len(e.W) for e in encoders) <= _MOST_LATENTS


@contextlib.contextmanager
def shared_product(x: Tensor, encoders: Sequence[Encoder]) -> Iterator[None]:
    """Makes one product for all encoders, where that pays; operations inside the block that are given this x use it.

    Weights may change after their own operation was done, as a trainer changes them.

    Args:
        x: activations (B, D).
        encoders: those that will be applied to x inside the block.
    """
    if not is_worthwhile(x, encoders):
        yield
        return
    with torch.no_grad(), no_autocast(x):
        x, _ = replace_nonfinite(x)  # as each trainer will
        centers = [upcast(e.W).new_zeros(x.shape[1]) if e.center is None else upcast(e.center) for e in encoders]
        center = torch.stack(centers).mean(0)
        biases = [upcast(e.b) - upcast(e.W) @ (own - center) for e, own in zip(encoders, centers, strict=True)]
        dtype = torch.bfloat16 if bfloat16_is_fast(x.device.type) else torch.float32
        W = torch.cat([e.W.to(dtype) for e in encoders])
        product = torch.addmm(torch.cat(biases).to(dtype), (upcast(x) - center).to(dtype), W.T)
        parts = product.split([len(e.W) for e in encoders], dim=1)
    token = _products.set({e.W.data_ptr(): part for e, part in zip(encoders, parts, strict=True)})
    try:
        yield
    finally:
        _products.reset(token)


def product_for(x: Tensor, W: Tensor) -> Tensor | None:
    """Returns the pre-activations of x for an encoder (B, F) if they were made with others', else None."""
    part = (_products.get() or {}).get(W.data_ptr())
    return part if part is not None and part.shape == (len(x), len(W)) else None
