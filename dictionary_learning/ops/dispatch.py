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

VARIABLE = "DICTIONARY_LEARNING_BACKEND"
F = TypeVar("F", bound=Callable[..., Any])

_chosen: contextvars.ContextVar[str | None] = contextvars.ContextVar("backend", default=None)


class Implementation(NamedTuple):
    """One form of an operation."""

    backend: str
    function: Callable[..., Any]
    supports: Callable[..., bool]
    """Is given the operation's arguments; tells whether this form can serve them."""


_implementations: dict[str, list[Implementation]] = {}
_answers: dict[str, Callable[[torch.device], tuple[bool, str]]] = {}


def backend_status(backend: str) -> Callable[[F], F]:
    """Registers the decorated function, which tells whether a backend serves a device, and what it does there or why not."""

    def decorate(function: F) -> F:
        _answers[backend] = function
        return function

    return decorate


def implements(operation: str, backend: str, supports: Callable[..., bool] = lambda *_: True) -> Callable[[F], F]:
    """Registers the decorated function as a form of the operation; forms registered later are tried first."""

    def decorate(function: F) -> F:
        _implementations.setdefault(operation, []).insert(0, Implementation(backend, function, supports))
        return function

    return decorate


def resolve(operation: str, *arguments: Any) -> Callable[..., Any]:
    """Returns the form of the operation that serves these arguments."""
    wanted = backend()
    forms = _implementations[operation]
    for form in forms:
        if wanted in (None, form.backend) and form.supports(*arguments):
            return form.function
    return reference_form(operation)


def reference_form(operation: str) -> Callable[..., Any]:
    """Returns the reference form, which serves everything."""
    return _implementations[operation][-1].function


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
    """Returns which form of each operation float32 tensors on the device get, and about each backend what it does there."""
    forced = backend()
    lines = {}
    for operation, forms in _implementations.items():
        usable = [
            form.backend for form in forms if forced in (None, form.backend) and _answers[form.backend](device)[0]
        ]
        chosen = usable[0] if usable else "reference"
        lines[operation] = f"{chosen}, as asked for by use_backend or {VARIABLE}" if chosen == forced else chosen
    for name in available():
        does, answer = _answers[name](device)
        lines[f"backend {name}"] = answer if does else f"not used: {answer}"
    return lines
