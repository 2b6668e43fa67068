"""Matching pursuit that may take a latent again, and may stop early."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES
from dictionary_learning.dictionaries.nonlinearities.pursuit import Pursuit
from dictionary_learning.errors import ConfigError
from dictionary_learning.latents import SparseLatents, Support
from dictionary_learning.ops.precision import no_autocast, upcast


@NONLINEARITIES.register("stopped_pursuit")
class StoppedPursuit(Pursuit):
    """Takes up to k times the latent whose direction has the largest part of what is left of x, and takes that part away.

    r = x - b_dec;  i = argmax relu(<r, d_i>),  f_i <- f_i + relu(<r, d_i>),  r <- r - relu(<r, d_i>) d_i

    A latent may be taken again, rows may have any norm, and a token stops by itself, as in SAELens. `MatchingPursuit` takes each
    latent once, k of them.

    Args:
        k: how many rounds a token has at most, and so how many latents may be non-zero.
        residual_threshold: a token stops when the norm of what is left is below; 0 for never.
        stop_on_duplicate_support: whether a token stops when a round adds no latent to those taken.
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
        return {
            **super().options(),
            "residual_threshold": self.residual_threshold,
            "stop_on_duplicate_support": self.stop_on_duplicate_support,
        }

    def pursue(self, residual: Float[Tensor, "batch dim"], W: Float[Tensor, "dict_size dim"], n: int) -> SparseLatents:
        with no_autocast(residual):
            dense = self._dense(residual, upcast(W), n)
        # at most n latents are not zero
        indices = dense.detach().abs().topk(n, dim=1, sorted=False).indices
        return SparseLatents(dense.gather(1, indices), Support(indices, len(W)))

    def _dense(self, residual: Tensor, W: Tensor, n: int) -> Tensor:
        latents = residual.new_zeros(len(residual), len(W))
        going = torch.ones(len(residual), 1, dtype=torch.bool, device=residual.device)
        for _ in range(n):
            with torch.no_grad():
                taken = (residual @ W.T).relu().argmax(1, keepdim=True)
            rows = torch.nn.functional.embedding(taken.squeeze(1), W)
            value = (residual * rows).sum(1, keepdim=True).relu() * going
            # a round of no value adds no latent either
            adds = (latents.gather(1, taken) == 0) & (value != 0)
            latents = latents.scatter_add(1, taken, value)
            residual = residual - value * rows
            if self.stop_on_duplicate_support:
                going = going & adds
            if self.residual_threshold > 0:
                going = going & (residual.norm(dim=1, keepdim=True) >= self.residual_threshold)
        return latents
