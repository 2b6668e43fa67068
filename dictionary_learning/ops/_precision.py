"""Operations compute in float32 at least, whatever dtype their tensors are stored in."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

_LOW = (torch.bfloat16, torch.float16)


def upcast(tensor: Tensor) -> Tensor:
    """Returns the tensor in float32 if its dtype is lower, else as it is."""
    return tensor.float() if tensor.dtype in _LOW else tensor


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Returns a context without autocast on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)
