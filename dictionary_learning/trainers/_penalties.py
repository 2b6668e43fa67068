"""Penalties on the values or on the number of latents, where a nonlinearity does not limit it.

In the formulas, f are the latents of a token, and n_i is the decoder norm of latent i, or 1 where
norms do not count. All penalties are means over tokens.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.config import Registry
from dictionary_learning.dictionaries import Trainable
from dictionary_learning.dictionaries.nonlinearities import JumpReLU
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import Latents, replace_values
from dictionary_learning.trainers._losses import mean_sum, per_token, weighted

_LEAST = 1e-6
"""Floor of values before a power: for p < 1 the slope of f^p has no bound at 0."""


class Sparsity(NamedTuple):
    """What penalties are computed from."""

    dictionary: Trainable
    latents: Latents
    pre: Latents
    """Pre-activations, dense or sparse as the latents are."""
    norms: Float[Tensor, "dict_size"] | None
    """Weight of each latent; None for equal weights."""

    def values(self) -> Latents:
        """Returns f_i n_i."""
        return replace_values(self.latents, weighted(self.latents, self.norms))

    def fires(self) -> Latents:
        """Returns 1[f_i > 0], with a straight-through gradient for thresholds.

        Raises:
            ConfigError: The nonlinearity has no thresholds.
        """
        for part in self.dictionary.coders():
            if not isinstance(part.coder.nonlinearity, JumpReLU):
                name = type(part.coder.nonlinearity).__name__
                raise ConfigError(
                    f"A penalty on L0 has no gradient through {name}. Use JumpReLU, or a penalty on values."
                )
        return self.dictionary.pointwise("fires", self.pre)


Penalty = Callable[[Sparsity], Tensor]
PENALTIES: Registry[Callable[..., Tensor]] = Registry("sparsity penalty")
"""Functions of a `Sparsity`, and of settings of `PenaltyConfig` by name."""


@PENALTIES.register("l1")
def l1(sparsity: Sparsity) -> Tensor:
    """Returns sum_i f_i n_i."""
    return mean_sum(sparsity.values())


@PENALTIES.register("lp", "Lp^p")
def power_sum(sparsity: Sparsity, *, lp_norm: float = 1.0) -> Tensor:
    """Returns sum_i (f_i n_i)^p. With p < 1, large latents shrink less than with L1."""
    return mean_sum(powers(sparsity.values(), lp_norm))


@PENALTIES.register("lp_root", "Lp")
def power_norm(sparsity: Sparsity, *, lp_norm: float = 1.0) -> Tensor:
    """Returns (sum_i (f_i n_i)^p)^(1/p)."""
    sums = per_token(powers(sparsity.values(), lp_norm))  # (batch,)
    # at 0, without latents, the slope of the root is infinite: the gradient is 0 there
    return torch.where(sums > 0, sums.clamp_min(_LEAST).pow(1 / lp_norm), 0.0).mean()


@PENALTIES.register("tanh")
def tanh(sparsity: Sparsity, *, tanh_scale: float = 4.0) -> Tensor:
    """Returns sum_i tanh(c f_i n_i), near L0 for large latents.

    Anthropic, January 2025 update, where c = 4.
    """
    return mean_sum(_mapped(sparsity.values(), lambda f: torch.tanh(tanh_scale * f)))


@PENALTIES.register("l0", "step")
def l0(sparsity: Sparsity) -> Tensor:
    """Returns L0: the number of latents that fire (https://arxiv.org/abs/2407.14435)."""
    return mean_sum(sparsity.fires())


@PENALTIES.register("quadratic_l0", "quadratic")
def quadratic_l0(sparsity: Sparsity, *, target_l0: float = 20.0) -> Tensor:
    """Returns (2 / L0*) (L0 - L0*)^2 with the L0 of each token (Gemma Scope 2)."""
    return (per_token(sparsity.fires()) - target_l0).square().mean() * (2 / target_l0)


@PENALTIES.register("target_l0")
def relative_l0(sparsity: Sparsity, *, target_l0: float = 20.0) -> Tensor:
    """Returns (L0 / L0* - 1)^2 with the mean L0 of the batch, as in dictionary-learning."""
    return (mean_sum(sparsity.fires()) / target_l0 - 1).square()


@PENALTIES.register("entropy")
def entropy(sparsity: Sparsity) -> Tensor:
    """Returns -sum_i p_i log p_i with p_i = f_i n_i / sum_j f_j n_j, which does not depend on scale."""
    values = sparsity.values()
    totals = per_token(values)  # (batch,)
    # -sum p log p = log S - sum f log f / S, where S = sum f
    products = per_token(_mapped(values, lambda f: torch.where(f > 0, f * f.clamp_min(_LEAST).log(), 0.0)))
    some = totals > _LEAST
    # inside `where` too: the gradient of the branch that is not taken would be NaN
    safe = torch.where(some, totals, 1.0)
    return torch.where(some, safe.log() - products / safe, 0.0).mean()


def powers(values: Latents, p: float) -> Latents:
    """Returns f^p of each positive value f, and 0 for the others."""
    return values if p == 1 else _mapped(values, lambda f: torch.where(f > 0, f.clamp_min(_LEAST).pow(p), 0.0))


def _mapped(latents: Latents, function: Callable[[Tensor], Tensor]) -> Latents:
    return replace_values(latents, function(latents if isinstance(latents, Tensor) else latents.values))
