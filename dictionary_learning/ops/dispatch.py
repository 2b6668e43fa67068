"""Which implementation of an operation is used, and why.

Each operation has a `reference` form in plain PyTorch, which is its meaning, and may have faster ones. An
implementation says for given tensors whether it can serve them; the first that can is taken. `use_backend` or the
environment variable DICTIONARY_LEARNING_BACKEND names one for all operations that have it.
"""

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch

from dictionary_learning.errors import UnknownNameError
from dictionary_learning.hardware import bfloat16_is_fast

VARIABLE = "DICTIONARY_LEARNING_BACKEND"
F = TypeVar("F", bound=Callable[..., Any])

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


class Implementation(NamedTuple):
    """One form of an operation."""

    backend: str
    function: Callable[..., Any]
    serves: Callable[..., bool]
    """Is given the operation's arguments; tells whether this form can serve them."""


_implementations: dict[str, list[Implementation]] = {}


def implements(operation: str, backend: str, serves: Callable[..., bool] = lambda *_: True) -> Callable[[F], F]:
    """Registers the decorated function as a form of the operation; forms registered later are tried first."""

    def decorate(function: F) -> F:
        _implementations.setdefault(operation, []).insert(0, Implementation(backend, function, serves))
        return function

    return decorate


def resolve(operation: str, *arguments: Any) -> Callable[..., Any]:
    """Returns the form of the operation that serves these arguments."""
    wanted = backend()
    forms = _implementations[operation]
    for form in forms:
        if wanted in (None, form.backend) and form.serves(*arguments):
            return form.function
    return forms[-1].function  # the reference form serves everything


def backend() -> str | None:
    """Returns the backend that was asked for, or None where each operation chooses for itself."""
    name = _chosen.get() or os.environ.get(VARIABLE) or None
    if name is not None and name not in available():
        raise UnknownNameError("backend", name, available())
    return name


def available() -> list[str]:
    """Returns the names of the backends."""
    return sorted({form.backend for forms in _implementations.values() for form in forms})


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Uses one backend for all operations inside the `with` block; None lets each choose.

    Raises:
        UnknownNameError: there is no backend of that name.
    """
    if name is not None and name not in available():
        raise UnknownNameError("backend", name, available())
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def status(device: torch.device) -> dict[str, str]:
    """Returns for each operation which form float32 tensors on the device get, and why."""
    forced = backend()
    why = f"asked for by use_backend or {VARIABLE}" if forced else "the fastest that serves float32 tensors here"
    coarse = device.type == "cpu" and bfloat16_is_fast("cpu")
    select = (
        "bfloat16 candidates, re-ranked in float32"
        if coarse
        else "float32 (bfloat16 products are not faster on this CPU, or it is none)"
    )
    lines = {name: f"{forced or forms[0].backend} ({why})" for name, forms in _implementations.items()}
    return {**lines, "selection of the top k": select if (forced or "sparse") == "sparse" else "float32"}
