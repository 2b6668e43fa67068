"""Matching pursuit: latents are chosen one by one, each for the residual of the others."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities._base import NONLINEARITIES, SparseSelection
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops import Encoder
from dictionary_learning.ops._precision import no_autocast, upcast

_CHOSEN = -torch.inf
_LARGEST_GRAM = 16_384
"""Latents up to which all products of decoder rows are stored: 1 GiB."""


class Pursuit(SparseSelection):
    """Chooses latents one after another. The encoder is the decoder."""

    has_bias = True
    is_tied = True

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        raise ConfigError(f"{type(self).__name__} needs activations, not pre-activations; use the dictionary's encode.")


@NONLINEARITIES.register("matching_pursuit")
class MatchingPursuit(Pursuit):
    """Chooses k times the latent with the largest part in the residual, and subtracts that part.

    r = x - b_dec;  k times: i = argmax <r, d_i>,  f_i = relu(<r, d_i>),  r <- r - f_i d_i

    No latent is chosen twice. The encoder is the decoder, with unit rows. Gradients flow through
    all rounds, for the chosen latents.
    Costa et al. 2025, https://arxiv.org/abs/2506.03093.
    """

    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        residual, W = encoder.centered(x), encoder.W
        with torch.no_grad(), no_autocast(residual):
            indices = _chosen_in_order(residual, upcast(W), k)  # (batch, k)
        values: list[Tensor] = []
        # the same rounds once more for the gradient, with products of width dim, not dict_size
        for chosen in indices.unbind(1):
            rows = torch.nn.functional.embedding(chosen, W)  # (batch, dim)
            value = (residual * upcast(rows)).sum(1, keepdim=True).relu()  # (batch, 1)
            latent = SparseLatents(value, Support(chosen.unsqueeze(1), len(W)))
            residual = residual - encoder.backend.decode(latent, W)
            values.append(value)
        return SparseLatents(torch.cat(values, dim=1), Support(indices, len(W)))


def _chosen_in_order(
    residual: Float[Tensor, "batch dim"], W: Float[Tensor, "dict_size dim"], n: int
) -> Int[Tensor, "batch n"]:
    """Returns the latents that are chosen, in order."""
    scores = residual @ W.T  # (batch, dict_size)
    # the Gram matrix costs as much as the rounds of dict_size tokens
    gram = W @ W.T if len(W) <= min(_LARGEST_GRAM, n * len(residual) // 2) else None
    chosen: list[Tensor] = []
    for _ in range(n):
        value, index = scores.max(1)
        chosen.append(index)
        if len(chosen) == n:
            break
        part = value.clamp_min(0).unsqueeze(1)
        if gram is not None:
            scores.addcmul_(gram[index], part, value=-1)
        else:
            residual = residual - part * W[index]
            torch.mm(residual, W.T, out=scores)
        scores.scatter_(1, torch.stack(chosen, 1), _CHOSEN)
    return torch.stack(chosen, 1)


@NONLINEARITIES.register("stopped_pursuit")
class StoppedPursuit(Pursuit):
    """Matching pursuit that may choose a latent again, and may stop early.

    r = x - b_dec;  i = argmax <r, d_i>,  v = relu(<r, d_i>),  f_i <- f_i + v,  r <- r - v d_i

    Decoder rows may have any norm, and each token stops by itself, as in SAELens.

    Args:
        k: Rounds of a token at most, and so latents that may be non-zero.
        residual_threshold: A token stops when the norm of its residual is below; 0 for never.
        stop_on_duplicate_support: Whether a token stops when a round adds no new latent.

    Raises:
        ConfigError: An argument cannot be used.
    """

    def __init__(self, k: int, residual_threshold: float = 0.0, stop_on_duplicate_support: bool = True):
        super().__init__(k)
        if not residual_threshold >= 0:
            raise ConfigError(f"StoppedPursuit got residual_threshold={residual_threshold}; a norm is not negative.")
        self.residual_threshold = float(residual_threshold)
        self.stop_on_duplicate_support = stop_on_duplicate_support

    def scale_(self, factor: float) -> None:
        self.residual_threshold *= factor

    def options(self) -> dict[str, Any]:
        names = ("k", "residual_threshold", "stop_on_duplicate_support")
        return {name: getattr(self, name) for name in names}

    def encode_sparse(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        with no_autocast(x):
            dense = self._dense(encoder.centered(x), upcast(encoder.W), k)  # (batch, dict_size)
        indices = dense.detach().abs().topk(k, dim=1, sorted=False).indices  # at most k latents are not zero
        return SparseLatents(dense.gather(1, indices), Support(indices, len(encoder.W)))

    def _dense(self, residual: Tensor, W: Tensor, n: int) -> Tensor:
        latents = residual.new_zeros(len(residual), len(W))
        is_active = torch.ones(len(residual), 1, dtype=torch.bool, device=residual.device)
        for _ in range(n):
            with torch.no_grad():
                chosen = (residual @ W.T).relu().argmax(1, keepdim=True)  # (batch, 1)
            rows = torch.nn.functional.embedding(chosen.squeeze(1), W)
            value = (residual * rows).sum(1, keepdim=True).relu() * is_active
            # a round of value 0 adds no latent either
            adds = (latents.gather(1, chosen) == 0) & (value != 0)
            latents = latents.scatter_add(1, chosen, value)
            residual = residual - value * rows
            if self.stop_on_duplicate_support:
                is_active = is_active & adds
            if self.residual_threshold > 0:
                is_active = is_active & (residual.norm(dim=1, keepdim=True) >= self.residual_threshold)
        return latents
