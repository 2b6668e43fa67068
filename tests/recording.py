"""A CUDA graph without a GPU: the operations of a function, recorded, and made again in the same memory.

As a graph does, it knows tensors by their memory and takes numbers of the host as they were, and it
refuses what waits for a device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount")
"""Operations whose result the host needs, or whose shape depends on values."""

_SHAPES = ("squeeze_", "unsqueeze_", "t_", "transpose_", "as_strided_")
"""Operations that change a tensor's shape in place, and none of its values."""


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[Callable[[], None]] = []
        self._is_in_kernel = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_in_kernel:
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        masks = [i for i in (args[1] if name == "index" else ()) if i is not None]
        if name in _WAITS or any(i.dtype == torch.bool for i in masks):
            raise RuntimeError(f"{func} waits for the device")
        args, kwargs, given, named = *tree_map(_alias, (args, kwargs)), args, kwargs
        out = func(*given, **named)
        if any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns):
            return out  # views of the same memory
        if name in _SHAPES:
            return out
        # the shapes that they have now: those of the same objects may change in place
        outs = [] if func._schema.is_mutable else _tensors(tree_map(_alias, out))

        def again() -> None:
            for old, new in zip(outs, _tensors(func(*args, **kwargs)), strict=False):
                assert old.shape == new.shape, f"{func} returned {tuple(new.shape)}, and {tuple(old.shape)} before"
                old.copy_(new)

        self.made.append(again)
        return out

    def launch(self, run: Callable[..., Any], kernel: Any, *args: Any, **options: Any) -> Any:
        """Launches a kernel of Triton's interpreter, which writes into its arguments."""

        def again() -> None:
            self._is_in_kernel = True
            try:
                run(kernel, *args, **options)
            finally:
                self._is_in_kernel = False

        again()
        self.made.append(again)


def record(make: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Records a function, as `CudaRecorder` does."""
    recording = _Recording()
    interpreted, run = _kernels()
    if interpreted is not None:
        interpreted.run = lambda kernel, *args, **options: recording.launch(run, kernel, *args, **options)
    try:
        with recording:
            made = make()
    finally:
        if interpreted is not None:
            interpreted.run = run

    @torch.no_grad()
    def replay() -> None:
        for again in recording.made:
            again()

    return replay, made


def _alias(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _kernels() -> tuple[Any, Any]:
    try:
        from triton.runtime.interpreter import InterpretedFunction
    except ImportError:
        return None, None
    return InterpretedFunction, InterpretedFunction.run
