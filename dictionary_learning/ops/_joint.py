"""One encoder product for several dictionaries on the same activations.

W_i (x - c_i) + b_i = W_i (x - c) + (b_i - W_i (c_i - c)): with one center c for all, the encoders
are one matrix. Selection looks up its part of the product; kept values are computed again exactly,
with the dictionary's own center.
"""

import contextlib
import contextvars
from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dictionary_learning._hardware import bfloat16_is_fast
from dictionary_learning.ops._backend import Encoder
from dictionary_learning.ops._finite import replaced_once
from dictionary_learning.ops._precision import no_autocast, upcast

_MOST_LATENTS = 16_384
"""In the largest dictionary. A larger one keeps a GPU busy by itself; on a CPU a product of 512
latents is as fast, for each latent, as one of many (measured: docs/performance.md)."""


class _Products(NamedTuple):
    x: Tensor
    encoders: Sequence[Encoder]
    parts: Sequence[Tensor]
    """(B, F) for each encoder."""


_shared: contextvars.ContextVar[_Products | None] = contextvars.ContextVar("shared_products", default=None)


def is_worthwhile(x: Tensor, encoders: Sequence[Encoder]) -> bool:
    """Returns whether one product for all is faster than one for each."""
    return x.device.type == "cuda" and len(encoders) > 1 and max(len(e.W) for e in encoders) <= _MOST_LATENTS


@contextlib.contextmanager
def shared_product(x: Tensor, encoders: Sequence[Encoder]) -> Generator[None, None, None]:
    """Computes one product for all encoders, for operations in the block, if worthwhile.

    An operation uses it if it gets the tensor that `replace_nonfinite(x)` returns inside the block,
    and the weight of one of the encoders: the tensor objects themselves, not others at their
    address. A weight may change after its own operation, as in a trainer's step.

    Args:
        x: activations (B, D).
        encoders: the encoders that will be applied to x inside the block.
    """
    if not is_worthwhile(x, encoders):
        yield
        return
    with replaced_once(x) as finite:
        token = _shared.set(_Products(finite, encoders, _multiply(finite, encoders)))
        try:
            yield
        finally:
            _shared.reset(token)


def product_for(x: Tensor, W: Tensor) -> Tensor | None:
    """Returns the pre-activations (B, F) that `shared_product` computed for x and W, or None."""
    shared = _shared.get()
    if shared is None or x is not shared.x:
        return None
    return next((part for e, part in zip(shared.encoders, shared.parts, strict=True) if e.W is W), None)


@torch.no_grad()
def _multiply(x: Tensor, encoders: Sequence[Encoder]) -> Sequence[Tensor]:
    with no_autocast(x):
        centers = [upcast(e.W).new_zeros(x.shape[1]) if e.center is None else upcast(e.center) for e in encoders]
        center = torch.stack(centers).mean(0)  # (D,)
        biases = [upcast(e.b) - upcast(e.W) @ (own - center) for e, own in zip(encoders, centers, strict=True)]
        dtype = torch.bfloat16 if bfloat16_is_fast(x.device.type) else torch.float32
        W = torch.cat([e.W.to(dtype) for e in encoders])  # (sum of F, D)
        product = torch.addmm(torch.cat(biases).to(dtype), (upcast(x) - center).to(dtype), W.T)
        return product.split([len(e.W) for e in encoders], dim=1)
