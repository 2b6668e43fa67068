"""A value that holds inside a `with` block, in this thread or task alone."""

import contextlib
from collections.abc import Generator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def holding(variable: ContextVar[T], value: T) -> Generator[None]:
    """Gives a variable a value inside a `with` block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
