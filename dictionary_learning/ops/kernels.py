"""What the sparse forms are made of: six computations, which a backend does in its own way.

Letters: B tokens, F latents, D activation, K kept, P (token, latent) pairs.
"""

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from dictionary_learning.latents import Support


class Selected(NamedTuple):
    """Kept pre-activations, those below zero as zero, and which they are."""

    values: Tensor
    """(B, K) or (P,)."""
    support: Support


@runtime_checkable
class Kernels(Protocol):
    """The computations. None is differentiated: gradients are made of the same six."""

    def top_k(self, x: Tensor, W: Tensor, b: Tensor, k: int) -> Selected:
        """Returns the k largest of relu(x W^T + b) of each token: x (B, D), W (F, D), b (F,)."""
        ...

    def batch_top_k(self, x: Tensor, W: Tensor, b: Tensor, n_kept: int) -> Selected:
        """Returns the n_kept largest of relu(x W^T + b) of all tokens together, as pairs."""
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
