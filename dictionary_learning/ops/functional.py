"""The operations as callers know them."""

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.latents import SparseLatents
from dictionary_learning.ops import (
    reference,  # noqa: F401
    sparse,  # noqa: F401
)
from dictionary_learning.ops.dispatch import resolve


def topk_encode(
    x: Float[Tensor, "batch dim"],
    W_enc: Float[Tensor, "dict_size dim"],
    b_enc: Float[Tensor, "dict_size"],
    k: int,
) -> SparseLatents:
    """Keeps the k largest of relu(W_enc x + b_enc) of each token, the largest first.

    Where fewer than k are positive, the rest are kept with the value 0. Gradients reach x, W_enc and b_enc through the
    kept positive values. Which of equal values is kept is not specified.
    """
    return resolve("topk_encode", x, W_enc, b_enc, k)(x, W_enc, b_enc, k)


def sparse_decode(latents: SparseLatents, W_dec: Float[Tensor, "dict_size dim"]) -> Float[Tensor, "batch dim"]:
    """Returns the sum over the kept latents of value times row of W_dec; gradients reach the values and W_dec."""
    return resolve("sparse_decode", latents, W_dec)(latents, W_dec)
