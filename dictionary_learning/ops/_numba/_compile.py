"""How loops are compiled: when first called, for the types they get, and kept on disk."""

import inspect
from collections.abc import Callable
from typing import Any

import numba

_ANY_ORDER = {"reassoc", "contract", "nsz"}  # terms of a sum in any order, as in a matrix product


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function as machine code, which other threads run beside."""
    return _compile(function, fastmath=False)


def compiled_sums(function: Callable[..., Any]) -> Callable[..., Any]:
    """Does the same, and lets the machine add several terms of a sum at once."""
    return _compile(function, fastmath=_ANY_ORDER)


def _compile(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    # without a check of types around it, as an import hook may have put there
    return numba.njit(nogil=True, cache=True, error_model="numpy", **options)(inspect.unwrap(function))
