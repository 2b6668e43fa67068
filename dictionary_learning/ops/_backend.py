"""Backends: implementations of encoding and decoding, one for each device and dtype.

`reference` is plain PyTorch and defines the results. `sparse` and `triton` are faster where few
latents are kept. Letters: B tokens, F latents, D activation, K kept.
"""

import contextlib
import contextvars
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._context import holding
from dictionary_learning.errors import UnknownNameError
from dictionary_learning.latents import Latents, SparseLatents, Support, to_dense
from dictionary_learning.ops._precision import no_autocast, upcast

VARIABLE = "DICTIONARY_LEARNING_BACKEND"
Choose = Callable[[Tensor], Tensor]
"""Takes pre-activations (B, F). Returns the indices of those to keep (B, K), or a mask (B, F)."""


class Encoder(NamedTuple):
    """The tensors of the pre-activations W (x - center) + b."""

    W: Tensor  # (F, D)
    b: Tensor  # (F,)
    center: Tensor | None = None  # (D,); None for zero

    @property
    def backend(self) -> "Backend":
        """The backend for the encoder's device and dtype."""
        return backend_for(self.W)

    def centered(self, x: Tensor) -> Tensor:
        """Returns x - center (B, D), in float32 at least."""
        return upcast(x) if self.center is None else upcast(x) - upcast(self.center)


class Backend(ABC):
    """The operations on which training spends its time. All are differentiable.

    All compute in float32 at least, whatever dtype their tensors are stored in, and return float32
    at least. To add a backend, implement them, or subclass `ReferenceBackend` and replace some, and
    register an instance:

        ops.register_backend("mine", MyBackend())
    """

    @abstractmethod
    def supports(self, device_type: str, dtype: torch.dtype) -> bool:
        """Returns whether the backend can be used for a device type ("cuda") and a dtype."""

    @abstractmethod
    def describe(self, device_type: str) -> str:
        """Returns what the backend does on a device type, or why it is not used, for `info`."""

    @abstractmethod
    def top_k(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        """Keeps the k largest of relu(W (x - center) + b) of each token, in no order.

        Where fewer than k are positive, the rest are kept with the value 0. Gradients reach x and
        the encoder through the kept positive values. Which of equal values is kept is not
        specified. A token with a non-finite value gets non-finite latents; the other tokens are not
        affected.
        """

    @abstractmethod
    def batch_top_k(self, x: Float[Tensor, "batch dim"], encoder: Encoder, k: int) -> SparseLatents:
        """Keeps the k * batch largest positive W (x - center) + b of all tokens together.

        A token may keep more than k latents or none: the support is ragged. Gradients are as in
        `top_k`. A token with a non-finite value keeps none. A backend that cannot wait for the
        device may keep pairs with the value 0.
        """

    @abstractmethod
    def encode_where(self, x: Float[Tensor, "batch dim"], encoder: Encoder, choose: Choose) -> Latents:
        """Returns the pre-activations W (x - center) + b that a rule chooses, not rectified.

        `choose` is called with pre-activations of some of the tokens. Gradients reach all chosen
        values. For a mask the result may be all pre-activations, dense, where that is faster: the
        caller must map the values that were not chosen to zero.
        """

    @abstractmethod
    def decode(self, latents: Latents, W_dec: Float[Tensor, "dict_size dim"]) -> Float[Tensor, "batch dim"]:
        """Returns the sum over the latents of value * row of W_dec."""


class ReferenceBackend(Backend):
    """Dense products and `torch.topk`, on any device and in any dtype: they define the results."""

    def supports(self, device_type: str, dtype: torch.dtype) -> bool:
        return True

    def describe(self, device_type: str) -> str:
        return "dense products and torch.topk; other backends use it too where many latents are kept"

    def top_k(self, x: Tensor, encoder: Encoder, k: int) -> SparseLatents:
        values, indices = _pre_activations(x, encoder).relu().topk(k, dim=-1)  # (B, K)
        return SparseLatents(values, Support(indices, len(encoder.W)))

    def batch_top_k(self, x: Tensor, encoder: Encoder, k: int) -> SparseLatents:
        pre, n_latents = _pre_activations(x, encoder).relu(), len(encoder.W)
        with torch.no_grad():
            flat = torch.where(pre.isfinite().all(-1, keepdim=True), pre, 0.0).flatten()  # (B * F,)
            kept = flat.topk(min(k * len(x), flat.numel())).indices.sort().values
            kept = kept[flat[kept] > 0]
            tokens, latents = kept // n_latents, kept % n_latents
            offsets = torch.searchsorted(tokens, torch.arange(len(x) + 1, device=x.device))
        return SparseLatents(pre[tokens, latents], Support(latents, n_latents, offsets))

    def encode_where(self, x: Tensor, encoder: Encoder, choose: Choose) -> Latents:
        pre = _pre_activations(x, encoder)
        kept = choose(pre.detach())
        if kept.dtype == torch.bool:
            return pre  # the caller maps what was not chosen to zero, in values and gradients
        return SparseLatents(pre.gather(1, kept), Support(kept, len(encoder.W)))

    def decode(self, latents: Latents, W_dec: Tensor) -> Tensor:
        with no_autocast(W_dec):
            return to_dense(latents).to(upcast(W_dec).dtype) @ upcast(W_dec)


def _pre_activations(x: Tensor, encoder: Encoder) -> Tensor:
    with no_autocast(x):
        return torch.nn.functional.linear(encoder.centered(x), upcast(encoder.W), upcast(encoder.b))  # (B, F)


REFERENCE = ReferenceBackend()
_backends: dict[str, Backend] = {}
_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


def register_backend(name: str, backend: Backend) -> None:
    """Makes a backend available under a name. Backends that were registered later are preferred."""
    _backends[name] = backend
    _choose_backend.cache_clear()


def backend_for(weight: Tensor) -> Backend:
    """Returns the backend for a weight: chosen once for a device type, dtype and forced name.

    Inside `torch.compile` and the transforms of `torch.func` it is the reference, whose operations
    these can follow.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:  # pyright: ignore
        return REFERENCE
    return _choose_backend(weight.device.type, weight.dtype, forced_backend())


@functools.cache
def _choose_backend(device_type: str, dtype: torch.dtype, forced: str | None) -> Backend:
    candidates = list(_backends.values()) if forced is None else [_backends["reference"], _backends[forced]]
    return next(backend for backend in reversed(candidates) if backend.supports(device_type, dtype))


def forced_backend() -> str | None:
    """Returns the name that `use_backend` or the environment variable forces, or None."""
    return _checked(_forced.get() or os.environ.get(VARIABLE) or None)


def available() -> list[str]:
    """Returns the names of the backends."""
    return sorted(_backends)


@checked()
@contextlib.contextmanager
def use_backend(name: str | None) -> Generator[None, None, None]:
    """Forces one backend inside the `with` block; None restores the automatic choice.

    Where the backend does not support a device or a dtype, the reference is used.

    Raises:
        UnknownNameError: there is no backend of that name.
    """
    with holding(_forced, _checked(name)):
        yield


def status(device: torch.device) -> dict[str, str]:
    """Returns the backend for float32 on a device, and what each backend does there."""
    forced, used = forced_backend(), _choose_backend(device.type, torch.float32, forced_backend())
    name = next(name for name, backend in _backends.items() if backend is used)
    lines = {"encode and decode": f"{name}, as forced by use_backend or {VARIABLE}" if name == forced else name}
    for name, backend in sorted(_backends.items()):
        is_used = "" if backend.supports(device.type, torch.float32) else "not used: "
        lines[f"backend {name}"] = is_used + backend.describe(device.type)
    return lines


def _checked(name: str | None) -> str | None:
    if name is not None and name not in _backends:
        raise UnknownNameError("backend", name, available())
    return name
