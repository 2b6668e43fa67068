"""Shared by the optimizers: checks, clipping, and rows that were written from outside."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from dictionary_learning.errors import ConfigError
from dictionary_learning.parallel import ALONE, Ranks

Closure = Callable[[], float] | None
"""Computes the loss and its gradients, as in PyTorch's `step(closure)`."""
LOW_PRECISION = (torch.bfloat16, torch.float16)
"""Types of weights that get a float32 copy: small steps would be rounded away."""
_TINY = 1e-6
"""Added to the norm of the gradients before clipping, as in `torch.nn.utils.clip_grad_norm_`."""


def check_numbers(lr: float | Tensor, betas: tuple[float, float], eps: float, max_grad_norm: float | None) -> None:
    """Raises ConfigError if a number of an optimizer is out of range."""
    if not (lr >= 0 and eps >= 0 and all(0 <= beta < 1 for beta in betas)):
        raise ConfigError(
            f"The optimizer got lr={lr}, betas={betas}, eps={eps}; lr and eps of at least 0 and betas in [0, 1) are "
            "needed."
        )
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ConfigError(f"Got max_grad_norm={max_grad_norm}; give a positive norm, or None for no limit.")


def clip_divisor(norm: Tensor, max_grad_norm: float | None) -> Tensor:
    """Returns the divisor of gradients with this common norm; 1 where it is small enough."""
    return torch.ones_like(norm) if max_grad_norm is None else ((norm + _TINY) / max_grad_norm).clamp_min_(1.0)


def squared_norm(gradient: Tensor) -> Tensor:
    """Returns the sum of the squares."""
    # torch's stubs leave the type of `vector_norm` open
    return cast(Tensor, torch.linalg.vector_norm(gradient)).square()  # pyright: ignore[reportUnknownMemberType]


class CommonNorm:
    """The norm of the gradients of all parameters, of which ranks may have parts.

    Args:
        ranks: The processes that have other parts of some parameters.
        parameters: Those of which this process has a part; of the others, all have the whole.
    """

    def __init__(self, ranks: Ranks = ALONE, parameters: Iterable[Tensor] = ()):
        self._ranks, self._parts = ranks, frozenset(map(id, parameters))

    def __call__(self, squared: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Returns the norm, given each parameter with its gradient's squared norm."""
        if self._ranks.size == 1:
            return torch.stack([value for _, value in squared]).sum().sqrt()
        nothing = torch.zeros_like(squared[0][1])
        own = torch.stack([nothing, *(value for p, value in squared if id(p) in self._parts)]).sum()
        rest = torch.stack([nothing, *(value for p, value in squared if id(p) not in self._parts)]).sum()
        return (self._ranks.sum(own) + rest).sqrt()


def whole_state(self: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns what copies and pickles of an optimizer have: PyTorch's leave out its attributes."""
    return {name: value for name, value in vars(self).items() if not name.startswith("_optimizer_")}


@torch.no_grad()
def take_rows(optimizer: torch.optim.Optimizer, parameter: Tensor, rows: Tensor) -> None:
    """Makes an optimizer forget rows of a parameter that were written by others, as in resampling.

    Mean gradients of the rows become 0, and copies of the weights in the state get the new rows.
    Means in 8 bits stay, since their codes have no plain zero; they decay. An optimizer with a
    method `take_rows` does that instead. `rows` are indices or a mask.
    """
    own = getattr(optimizer, "take_rows", None)
    if own is not None:
        own(parameter, rows)
        return
    for name, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
            # means may be in main memory, and a copy of the weight is beside it
            value[rows.to(value.device)] = parameter.detach()[rows].to(value.dtype) if name == "master" else 0
