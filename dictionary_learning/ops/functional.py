"""The operations as callers know them.

All compute in float32 at least, and return that, whatever their tensors are stored in.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.latents import Latents, SparseLatents
from dictionary_learning.ops import (
    reference,  # noqa: F401
    torch_kernels,  # noqa: F401
    triton,  # noqa: F401
)
from dictionary_learning.ops.chosen import Choose
from dictionary_learning.ops.dispatch import resolve


def topk_encode(
    x: Float[Tensor, "batch dim"],
    W_enc: Float[Tensor, "dict_size dim"],
    b_enc: Float[Tensor, "dict_size"],
    k: int,
    *,
    center: Float[Tensor, "dim"] | None = None,
) -> SparseLatents:
    """Keeps the k largest of relu(W_enc (x - center) + b_enc) of each token, in no order.

    Where fewer than k are positive, the rest are kept with the value 0. Gradients reach x, center, W_enc and b_enc through
    the kept positive values. Which of equal values is kept is not specified. A token with a value that is not finite
    gets values that are not; the others do not notice.
    """
    return resolve("topk_encode", x, W_enc, b_enc, k, center)(x, W_enc, b_enc, k, center)


def batch_topk_encode(
    x: Float[Tensor, "batch dim"],
    W_enc: Float[Tensor, "dict_size dim"],
    b_enc: Float[Tensor, "dict_size"],
    k: int,
    *,
    center: Float[Tensor, "dim"] | None = None,
) -> SparseLatents:
    """Keeps the k * batch largest of relu(W_enc (x - center) + b_enc) of all tokens together, and none that is zero.

    A token may keep more than k or none: the support is ragged. Gradients are as in `topk_encode`. A token with a
    value that is not finite keeps none.
    """
    return resolve("batch_topk_encode", x, W_enc, b_enc, k, center)(x, W_enc, b_enc, k, center)


def encode_where(
    x: Float[Tensor, "batch dim"],
    W_enc: Float[Tensor, "dict_size dim"],
    b_enc: Float[Tensor, "dict_size"],
    choose: Choose,
    *,
    center: Float[Tensor, "dim"] | None = None,
) -> Latents:
    """Returns those of the pre-activations W_enc (x - center) + b_enc that a rule chooses; gradients reach all of them.

    `choose` is given rows of pre-activations and returns the indices of those wanted, as many for each token, or a mask. What
    comes back is sparse, not rectified; or, for a mask, all pre-activations, dense, where that is faster: what is made of
    them has to be zero where the rule does not choose.
    """
    return resolve("encode_where", x, W_enc, b_enc, choose, center)(x, W_enc, b_enc, choose, center)


def sparse_decode(latents: SparseLatents, W_dec: Float[Tensor, "dict_size dim"]) -> Float[Tensor, "batch dim"]:
    """Returns the sum over the kept latents of value times row of W_dec; gradients reach the values and W_dec."""
    return resolve("sparse_decode", latents, W_dec)(latents, W_dec)


def take_rows(weight: Float[Tensor, "rows *dim"], indices: Int[Tensor, "n"]) -> Float[Tensor, "n *dim"]:
    """Returns rows of a weight, none twice; the gradient is written to its place, not added up."""
    return _TakeRows.apply(weight, indices)  # type: ignore[return-value]


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.n_rows = weight.shape[0]
        return weight.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (indices,) = ctx.saved_tensors
        return grad.new_zeros(ctx.n_rows, *grad.shape[1:]).index_copy_(0, indices, grad), None
