"""What an optimizer does about rows that it has not moved itself."""

import torch
from torch import Tensor


@torch.no_grad()
def take_rows(optimizer: torch.optim.Optimizer, parameter: Tensor, rows: Tensor) -> None:
    """Makes an optimizer begin anew with rows of a parameter that were written from outside, as resampling does.

    Means of gradients of those rows become 0, and what the optimizer keeps in place of the weights takes the new ones over.
    Means in 8 bits stay, since their codes have no plain zero; they fade with their decays.

    Args:
        optimizer: one of PyTorch's kind; it may have a method `take_rows` of its own.
        parameter: the parameter, after its rows were written.
        rows: their numbers, or a mask.
    """
    own = getattr(optimizer, "take_rows", None)
    if own is not None:
        own(parameter, rows)
        return
    for name, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.is_floating_point():
            value[rows] = parameter.detach()[rows].to(value.dtype) if name == "master" else 0
