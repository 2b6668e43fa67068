"""Pre-activations of some latents, kept from an encoder's product for a selection among these.

AuxK selects among dead latents, whose pre-activations the method's own selection has computed.
Nothing is differentiated here: a selection tells latents, whose values are computed again exactly
where the product is in low precision.
"""

import contextlib
import contextvars

from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._context import holding
from dictionary_learning.ops._backend import Encoder


class Columns:
    """Some columns of a product, which the first selection by an encoder fills in.

    Args:
        encoder: Whose product.
        latents: Which columns, in ascending order.
    """

    def __init__(self, encoder: Encoder, latents: Int[Tensor, "n"]):
        self.encoder, self.latents = encoder, latents
        self.x: Tensor | None = None  # the activations that were selected from
        self.values: Float[Tensor, "batch n"] | None = None
        """The columns, as the selection saw them; None where it has not kept them."""


_wanted: contextvars.ContextVar[Columns | None] = contextvars.ContextVar("columns", default=None)


def keeping_columns(encoder: Encoder, latents: Int[Tensor, "n"]) -> contextlib.AbstractContextManager[None]:
    """Returns a context in which an encoder's first selection keeps what it computes of latents.

    Weights and activations must not change in it.
    """
    return holding(_wanted, Columns(encoder, latents))


def columns_to_keep(x: Tensor, encoder: Encoder) -> Columns | None:
    """Returns what a selection is asked to keep, once."""
    wanted = _wanted.get()
    if wanted is None or wanted.x is not None or not _is_same(wanted.encoder, encoder):
        return None
    wanted.x = x
    return wanted


def kept_columns(x: Tensor, encoder: Encoder, latents: Int[Tensor, "n"]) -> Float[Tensor, "batch n"] | None:
    """Returns the pre-activations of latents that a selection has kept; None if it has not."""
    kept = _wanted.get()
    # the tensors themselves: to compare their content, the host would wait for an accelerator
    if kept is None or kept.x is not x or kept.latents is not latents or not _is_same(kept.encoder, encoder):
        return None
    return kept.values


def _is_same(one: Encoder, other: Encoder) -> bool:
    return all(a is b for a, b in zip(one, other, strict=True))
