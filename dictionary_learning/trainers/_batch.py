"""The batch of a step, and its loss."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.dictionaries import Reconstruction

ModelLoss = Callable[[Tensor], Mapping[str, Tensor]]
"""Returns the losses "ce" and "kl" of the model with reconstructions (batch, output_dim)."""


class Batch(NamedTuple):
    """Activations of one step, or of a part of it."""

    x: Float[Tensor, "batch activation_dim"]
    """Input of the dictionary."""
    y: Float[Tensor, "batch output_dim"]
    """Target of the reconstruction; x itself for an autoencoder."""
    model_loss_fn: ModelLoss | None = None
    """The model's loss with a reconstruction spliced in, where the data can tell."""
    lengths: Int[Tensor, "contexts"] | None = None
    """Tokens of each context, where the batch is contexts one after another."""


class Loss(NamedTuple):
    """A loss and its parts."""

    total: Float[Tensor, ""]
    """The value that is differentiated."""
    error: Float[Tensor, ""]
    """Mean over tokens of |y - y_hat|^2."""
    terms: Mapping[str, Float[Tensor, ""]]
    """Every term by name, before weighting; for logs."""
    reconstruction: Reconstruction


class StepPart(NamedTuple):
    """A batch that contributed to an optimizer step."""

    batch: Batch
    loss: Loss
    share: float
    """The batch's share of the tokens of the step."""
