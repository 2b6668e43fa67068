"""An old address: gradient pursuit is in `dictionary_learning.dictionaries._pursuit`."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries._pursuit import gradient_pursuit
from dictionary_learning.latents import to_dense

__all__ = ["grad_pursuit", "gradient_pursuit"]


def grad_pursuit(
    signal: Float[Tensor, "batch dim"],
    dictionary: Float[Tensor, "dim dict_size"],
    target_l0: int = 20,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "batch dict_size"]:
    """Returns dense `gradient_pursuit` latents, up to `target_l0` each; directions are columns."""
    return to_dense(gradient_pursuit(signal.to(device), dictionary.to(device).T.contiguous(), target_l0))
