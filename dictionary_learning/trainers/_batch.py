"""What a step works on: a batch, its loss, and what both contributed."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._border import short
from dictionary_learning._usual_state import usable
from dictionary_learning.dictionaries import Reconstruction
from dictionary_learning.errors import DataError
from dictionary_learning.latents import detached
from dictionary_learning.ops._joint import replace_nonfinite

_ABSURD = 1e4
"""Multiple of the median norm, from which on a row is left out of a sample."""
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

    def split(self, n: int) -> "list[Batch]":
        """Returns the batch in n parts, or fewer if it has fewer tokens."""
        if n == 1:
            return [self]
        pairs = zip(self.x.chunk(n), self.y.chunk(n), strict=True)
        return [self._replace(x=x, y=x if self.y is self.x else y, lengths=None) for x, y in pairs]


def finite_batch(x: Tensor, y: Tensor | None, device: torch.device) -> tuple[Batch, Int[Tensor, ""]]:
    """Returns a batch on a device, with tokens that are not finite replaced, and their number."""
    x, y = _plain(x), None if y is None else _plain(y)
    x = x.to(device)
    if y is None:
        x, n_replaced = replace_nonfinite(x)
        return Batch(x, x), n_replaced
    # a token is replaced on both sides, or the target would be predicted from another input
    both, n_replaced = replace_nonfinite(torch.cat([x, y.to(x)], dim=1))
    width = x.shape[1]
    return Batch(both[:, :width].contiguous(), both[:, width:].contiguous()), n_replaced


def _plain(given: Tensor) -> Tensor:
    """Returns a tensor of no class of the user's, through which gradients do not reach a model.

    Raises:
        DataError: It is sparse or complex.
    """
    if given.layout is not torch.strided or given.is_complex():
        raise DataError(f"Got activations {short(given)}; give a dense tensor of real numbers.")
    if given.requires_grad or type(given) is not Tensor:
        given = given.detach().as_subclass(Tensor)
    return usable(given)  # else the same: a product is shared by the identity of its inputs


def usual_rows(x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns rows of a sample (y is x if None) without those of absurd norm, which would set all.

    Massive activations of language models are up to some thousand times the others.
    """
    usual = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for side in (x,) if y is None else (x, y):
        norms = torch.linalg.vector_norm(side, dim=1, dtype=torch.float64)  # squares of float32 overflow
        usual &= (norms <= _ABSURD * norms.median()) | (norms.median() == 0)
    if usual.all():
        return x, x if y is None else y
    return x[usual], (x if y is None else y)[usual]


class Loss(NamedTuple):
    """A loss and its parts."""

    total: Float[Tensor, ""]
    """The value that is differentiated."""
    error: Float[Tensor, ""]
    """Mean over tokens of |y - y_hat|^2."""
    terms: Mapping[str, Float[Tensor, ""]]
    """Every term by name, before weighting; for logs."""
    reconstruction: Reconstruction

    def detached(self) -> "Loss":
        """Returns the same values without the graph that computed them."""
        terms = {name: term.detach() for name, term in self.terms.items()}
        outputs, latents, pre = self.reconstruction
        plain = Reconstruction(outputs.detach(), detached(latents), None if pre is None else detached(pre))
        return Loss(self.total.detach(), self.error.detach(), terms, plain)


class StepPart(NamedTuple):
    """A batch that contributed to an optimizer step."""

    batch: Batch
    loss: Loss
    share: float
    """The batch's share of the tokens of the step."""
