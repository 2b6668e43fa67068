"""Terms that losses are made of."""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from dictionary_learning.dictionaries import Trainable
from dictionary_learning.dictionaries._trainable import CoderSlice
from dictionary_learning.dictionaries.nonlinearities import Elementwise
from dictionary_learning.latents import Latents, SparseLatents, gather_per_latent, n_tokens_of
from dictionary_learning.parallel import ALONE, Ranks

_LARGEST_EXPONENT = 10.0
"""Pre-activations of ghosts are capped here, so that their exponential does not overflow."""


def squared_error(x_hat: Float[Tensor, "batch dim"], x: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Returns the mean over tokens of |x - x_hat|^2."""
    return cast(Tensor, _SquaredError.apply(x_hat, x))


class _SquaredError(torch.autograd.Function):
    """The same bits as operations one by one, in half as many passes over the differences."""

    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, x: Tensor) -> Tensor:
        difference = x_hat - x
        ctx.save_for_backward(difference)
        return difference.square().sum(-1).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (difference,) = ctx.saved_tensors
        towards = difference * (grad / difference[..., 0].numel() * 2)
        return towards, -towards if ctx.needs_input_grad[1] else None


def norms(x: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows"]:
    """Returns the norm of each row."""
    # torch's stubs leave the type of `norm` open
    return cast(Tensor, x.norm(dim=-1))  # pyright: ignore[reportUnknownMemberType]


def auxk_loss(
    dictionary: Trainable,
    x: Float[Tensor, "batch activation_dim"],
    residual: Float[Tensor, "batch output_dim"],
    dead: Int[Tensor, "n_dead"],
    k_aux: int,
    scale: Float[Tensor, ""],
    n_dead: int | None = None,
) -> Float[Tensor, ""]:
    """Returns AuxK: the error with which dead latents predict the residual e, which is constant.

    min(n_dead / k_aux, 1) * E|e - e_hat|^2 / scale

    e_hat is decoded from the k_aux largest dead latents of each token; b_dec, which is subtracted
    from x where encoders subtract it, is a constant here. The scale is a constant of
    the step, so that parts of a batch add up to the whole.
    Where other processes have further latents, n_dead counts those of all.
    Gao et al. 2024, https://arxiv.org/abs/2406.04093, A.2, where it is E|e|^2 of the batch.
    """
    n_dead = len(dead) if n_dead is None else n_dead
    # without b_dec, which is in the residual already
    predicted = dictionary.decode_among(x, dead, k_aux)  # (batch, output_dim)
    loss = squared_error(predicted, residual) / scale.clamp_min(torch.finfo(scale.dtype).tiny)
    return loss.nan_to_num(0.0) * min(n_dead / k_aux, 1.0)


def ghost_loss(
    dictionary: Trainable,
    x: Float[Tensor, "batch activation_dim"],
    residual: Float[Tensor, "batch output_dim"],
    dead: Int[Tensor, "n_dead"],
    error: Float[Tensor, ""],
    ranks: Ranks = ALONE,
) -> Float[Tensor, ""]:
    """Returns the ghost loss: exp(pre-activations) of dead latents predict half of the residual e.

    L = |e - s g|^2,  g = W_dec^T exp(pre - threshold) over dead latents,  s = |e| / (2 |g|)

    L is scaled to the size of the reconstruction error. e, s and that scale are constants.
    Anthropic, January 2024 update ("ghost grads").
    """
    total = torch.zeros_like(residual)  # g, without its scale
    for part in dictionary.coders():
        own = part.own(dead)  # numbers within the coder
        pre = _margin(part, x, own)  # (batch, own dead)
        ghosts = part.coder.latent_ranks.add(pre.clamp_max(_LARGEST_EXPONENT).exp() @ part.coder.W_dec[own].float())
        # a coder may write a part of the output: (batch, own output_dim) -> (batch, output_dim)
        total = total + torch.nn.functional.pad(ghosts, (part.writes.start, total.shape[1] - part.writes.stop))
    norm = norms(total.detach())  # (batch,)
    scale = norms(residual) / (2 * norm).clamp_min(torch.finfo(norm.dtype).tiny)
    scaled = total * scale.unsqueeze(1)
    loss = squared_error(scaled, residual)
    error, size = ranks.mean(error.detach(), len(x)), ranks.mean(loss.detach(), len(x))
    return loss * (error / size.clamp_min(torch.finfo(loss.dtype).tiny))


def pre_activation_loss(
    dictionary: Trainable, x: Float[Tensor, "batch activation_dim"], dead: Int[Tensor, "n_dead"]
) -> Float[Tensor, ""]:
    """Returns E[sum over dead latents of relu(threshold - pre) |d|], whose gradient raises pre.

    |d| is the decoder norm of a latent. Anthropic, January 2025 update.
    """
    decoder_norms = dictionary.decoder_norms()  # (dict_size,)
    total = x.new_zeros(())
    for part in dictionary.coders():
        own = part.own(dead)
        short = (-_margin(part, x, own)).relu()  # (batch, own dead)
        total = total + part.coder.latent_ranks.add((short * decoder_norms[part.latents][own]).sum(-1).mean())
    return total


def _margin(part: CoderSlice, x: Tensor, own: Tensor) -> Float[Tensor, "batch n_dead"]:
    """Returns pre-activations of some latents minus the values above which these fire."""
    pre = part.coder.pre_activations(x[:, part.reads], own).float()
    nonlinearity = part.coder.nonlinearity
    # selections compare latents with each other, and have no threshold: 0 stands for it
    return nonlinearity.margin(pre, own.expand_as(pre)) if isinstance(nonlinearity, Elementwise) else pre


def per_token(latents: Latents) -> Float[Tensor, "batch"]:
    """Returns the sum of the values of each token."""
    if isinstance(latents, Tensor):
        return latents.sum(-1)
    if not latents.support.is_ragged:
        return latents.values.sum(-1)  # (batch, k) -> (batch,)
    # tokens have unequal numbers of latents: (pairs,) -> (batch,)
    zeros = latents.values.new_zeros(latents.support.n_tokens)
    return zeros.index_add(0, latents.support.tokens, latents.values)


def mean_sum(latents: Latents) -> Float[Tensor, ""]:
    """Returns the mean over tokens of the sum of the values."""
    values = latents.values if isinstance(latents, SparseLatents) else latents
    return values.sum() / max(n_tokens_of(latents), 1)


def weighted(latents: Latents, weights: Float[Tensor, "dict_size"] | None) -> Tensor:
    """Returns the values times the weights of their latents, in the shape of the values."""
    values = latents.values if isinstance(latents, SparseLatents) else latents
    return values if weights is None else values * gather_per_latent(weights, latents)
