"""What several dictionaries share on the same activations: finite tokens, and one encoder product.

W_i (x - c_i) + b_i = W_i (x - c) + (b_i - W_i (c_i - c)): with one center c for all, the encoders
are one matrix. Selection looks up its part of the product; kept values are computed again exactly,
with the dictionary's own center.
"""

import contextlib
import contextvars
from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._context import holding
from dictionary_learning._hardware import bfloat16_is_fast
from dictionary_learning.ops._backend import Encoder
from dictionary_learning.ops._precision import no_autocast, upcast

_MOST_LATENTS = 16_384
"""In the largest dictionary. A larger one keeps a GPU busy by itself; on a CPU a product of 512
latents is as fast, for each latent, as one of many (measured: docs/performance.md)."""


class _Shared(NamedTuple):
    x: Tensor
    finite: Tensor
    n_replaced: Tensor
    encoders: Sequence[Encoder]
    products: Sequence[Tensor]  # (B, F) for each encoder


_shared: contextvars.ContextVar[_Shared | None] = contextvars.ContextVar("shared", default=None)


def replace_nonfinite(x: Float[Tensor, "batch dim"]) -> tuple[Float[Tensor, "batch dim"], Int[Tensor, ""]]:
    """Replaces each token that has a NaN or an infinity by the last finite token before it.

    The batch keeps its size, so the host does not wait for the device. If no token is finite,
    nothing is replaced. Inside `shared_product(x, ...)` the same tensor is returned every time.

    Returns:
        The batch, and the number of tokens that were replaced.
    """
    shared = _shared.get()
    if shared is not None and x is shared.x:
        return shared.finite, shared.n_replaced
    # a sum is finite only if all its terms are; tokens whose finite terms overflow are replaced too
    sums = x.sum(-1, dtype=torch.promote_types(x.dtype, torch.float32))
    bad = sums - sums != 0  # (batch,), the difference is NaN for what is not finite
    n_replaced = bad.sum()
    if not len(x) or (x.device.type == "cpu" and not n_replaced):
        return x, n_replaced
    rows = torch.arange(len(x), device=x.device)
    before = rows.masked_fill(bad, -1).cummax(0).values  # the last finite token up to each; -1 if there is none
    return x[before.maximum(bad.byte().argmin())], n_replaced  # else the first finite one


def is_worthwhile(x: Tensor, encoders: Sequence[Encoder]) -> bool:
    """Returns whether one product for all is faster than one for each."""
    return x.device.type == "cuda" and len(encoders) > 1 and max(len(e.W) for e in encoders) <= _MOST_LATENTS


@contextlib.contextmanager
def shared_product(x: Float[Tensor, "batch dim"], encoders: Sequence[Encoder]) -> Generator[None, None, None]:
    """Computes one product for all encoders, for operations in the block, if worthwhile.

    An operation uses it if it gets the tensor that `replace_nonfinite(x)` returns inside the block,
    and the weight of one of the encoders: the tensor objects themselves, not others at their
    address. A weight may change after its own operation, as in a trainer's step.
    """
    if not is_worthwhile(x, encoders):
        yield
        return
    finite, n_replaced = replace_nonfinite(x)
    with holding(_shared, _Shared(x, finite, n_replaced, encoders, _multiply(finite, encoders))):
        yield


def product_for(x: Tensor, W: Tensor) -> Tensor | None:
    """Returns the pre-activations (B, F) that `shared_product` computed for x and W, or None."""
    shared = _shared.get()
    if shared is None or x is not shared.finite:
        return None
    return next((product for e, product in zip(shared.encoders, shared.products, strict=True) if e.W is W), None)


def given_product(x: Tensor, encoder: Encoder, product: Tensor | None) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which it is known what an encoder computes of x; None says nothing."""
    if product is None:
        return contextlib.nullcontext()
    return holding(_shared, _Shared(x, x, torch.zeros((), dtype=torch.long), [encoder], [product]))


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
