"""The operations as functions of weights: the older form of `Encoder` and `backend_for`."""

from torch import Tensor

from dictionary_learning.latents import Latents, SparseLatents
from dictionary_learning.ops.backend import Choose, Encoder, backend_for


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, *, center: Tensor | None = None) -> SparseLatents:
    """See `Backend.top_k`."""
    return backend_for(W_enc).top_k(x, Encoder(W_enc, b_enc, center), k)


def batch_topk_encode(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, *, center: Tensor | None = None
) -> SparseLatents:
    """See `Backend.batch_top_k`."""
    return backend_for(W_enc).batch_top_k(x, Encoder(W_enc, b_enc, center), k)


def encode_where(x: Tensor, W_enc: Tensor, b_enc: Tensor, choose: Choose, *, center: Tensor | None = None) -> Latents:
    """See `Backend.encode_where`."""
    return backend_for(W_enc).encode_where(x, Encoder(W_enc, b_enc, center), choose)


def sparse_decode(latents: SparseLatents, W_dec: Tensor) -> Tensor:
    """See `Backend.decode`."""
    return backend_for(W_dec).decode(latents, W_dec)
