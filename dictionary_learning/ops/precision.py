"""In which precision operations compute: at least float32, whatever tensors are stored in."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

_LOW = (torch.bfloat16, torch.float16)


def upcast(tensor: Tensor) -> Tensor:
    """Returns the tensor in float32 if it is stored in less."""
    return tensor.float() if tensor.dtype in _LOW else tensor


def no_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Returns a context in which autocast does not lower the precision of products on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)
