"""The six computations that a sparse backend consists of.

Letters: B tokens, F latents, D activation, K kept, P (token, latent) pairs.
"""

from typing import Protocol, runtime_checkable

from torch import Tensor

from dictionary_learning.latents import SparseLatents, Support


@runtime_checkable
class Kernels(Protocol):
    """The computations. Tensors may have any precision; sums are in float32 at least.

    None is differentiated: `ops/sparse.py` computes gradients with the same six.
    """

    def top_k(self, x: Tensor, W: Tensor, b: Tensor, k: int, product: Tensor | None = None) -> SparseLatents:
        """Returns the k largest of relu(x W^T + b) of each token, in no order.

        Args:
            x: (B, D), contiguous, float32 at least.
            W: (F, D)
            b: (F,)
            k: latents to keep for each token.
            product: x W^T + b (B, F) in low precision, where it was computed before (`ops/joint.py`).
        """
        ...

    def batch_top_k(self, x: Tensor, W: Tensor, b: Tensor, n_kept: int, product: Tensor | None = None) -> SparseLatents:
        """Returns the n_kept largest of relu(x W^T + b) of all tokens together, ragged; arguments as for `top_k`."""
        ...

    def pair_dots(self, x: Tensor, W: Tensor, support: Support) -> Tensor:
        """Returns x_n . W_i of each pair (n, i), in the shape of the support's indices: x (B, D), W (F, D)."""
        ...

    def sum_over_kept(self, values: Tensor, support: Support, W: Tensor) -> Tensor:
        """Returns for each token the sum over its pairs of value * W_i: (B, D)."""
        ...

    def sum_over_tokens(self, values: Tensor, support: Support, x: Tensor) -> Tensor:
        """Returns for each latent the sum over its pairs of value * x_n: (F, D)."""
        ...

    def totals(self, values: Tensor, support: Support) -> Tensor:
        """Returns for each latent the sum over its pairs of the value: (F,)."""
        ...
