"""What a step is made with, and what its loss is made of."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.dictionaries import Reconstruction
from dictionary_learning.latents import to_dense


class Batch(NamedTuple):
    """What a step is made with."""

    x: Float[Tensor, "batch activation_dim"]
    """What the dictionary reads."""
    y: Float[Tensor, "batch output_dim"]
    """What it is to reconstruct; x itself for an autoencoder."""
    model_loss_fn: Callable[[Tensor], Mapping[str, Tensor]] | None = None
    """Given reconstructions of y, returns what the model loses with them in place of y: "ce", "kl"; where the data can tell."""
    lengths: Int[Tensor, "contexts"] | None = None
    """How many tokens each context has, where the batch is contexts one after another."""


class Loss(NamedTuple):
    """What a loss is made of."""

    total: Float[Tensor, ""]
    """What is differentiated."""
    terms: dict[str, Float[Tensor, ""]]
    """What it is the sum of, by name, before weighting; for logs."""
    reconstruction: Reconstruction


class LossLog(NamedTuple):
    """What a loss is made of, in dictionary-learning's form."""

    x: Tensor
    x_hat: Tensor
    f: Tensor
    losses: dict[str, float]

    @classmethod
    def of(cls, x: Tensor, loss: Loss) -> "LossLog":
        """Returns that form of a loss, with dense latents and plain numbers."""
        terms = {**loss.terms, "loss": loss.total}
        losses = {name: float(term.detach()) for name, term in terms.items()}
        return cls(x, loss.reconstruction.outputs, to_dense(loss.reconstruction.latents), losses)
