"""PyTorch as it is by default, whatever the caller has set: so a call means the same everywhere."""

import contextlib
import threading
from collections.abc import Generator

import torch
from torch import Tensor

_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Types of devices that have an autocast of their own."""


@contextlib.contextmanager
def usual_state(*, gradients: bool | None = None, autocast: bool = True) -> Generator[None]:
    """Makes new tensors of a block float32, on the CPU, and no inference tensors, unless they say.

    Args:
        gradients: Whether they are recorded; None for what holds outside, under `inference_mode`
            not.
        autocast: Whether the block follows the caller's autocast, as what a training step
            computes does; else its products have the types of the tensors.
    """
    is_inference = torch.is_inference_mode_enabled()
    gradients = torch.is_grad_enabled() and not is_inference if gradients is None else gradients
    changes: list[contextlib.AbstractContextManager[object]] = []
    if is_inference:
        changes.append(torch.inference_mode(False))  # which alone switches gradients on
    if is_inference or torch.is_grad_enabled() != gradients:
        changes.append(torch.enable_grad() if gradients else torch.no_grad())
    if torch.empty(0).device.type != "cpu":
        changes.append(torch.device("cpu"))
    if _float32.is_needed:
        changes.append(_float32)
    if not autocast:
        on = [kind for kind in _DEVICES if torch.is_autocast_enabled(kind)]
        changes += [torch.autocast(kind, enabled=False) for kind in on]
    if not changes:  # as in every step of most runs
        yield
        return
    with contextlib.ExitStack() as stack:
        for change in changes:
            stack.enter_context(change)
        yield


def usable(given: Tensor) -> Tensor:
    """Returns a tensor that gradients may use, also if it was made under `inference_mode`."""
    return given.clone() if given.is_inference() and not torch.is_inference_mode_enabled() else given


class _Float32:
    """Float32 as the default type of the process, until the last block has ended."""

    def __init__(self) -> None:
        self._lock, self._n_blocks, self._before = threading.Lock(), 0, torch.float32

    @property
    def is_needed(self) -> bool:
        return self._n_blocks > 0 or torch.get_default_dtype() != torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if not self._n_blocks:
                self._before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._n_blocks += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_blocks -= 1
            if not self._n_blocks:
                torch.set_default_dtype(self._before)


_float32 = _Float32()
