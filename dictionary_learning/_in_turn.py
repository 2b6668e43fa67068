"""Methods that threads call one after another: of objects whose state they change together."""

import functools
import threading
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Owner = TypeVar("Owner", bound="InTurn")


class InTurn:
    """An object whose methods marked with `in_turn` wait while another thread is in one of them.

    A method may call another one. A copy has a turn of its own.
    """

    _turn: Any  # a lock that its thread may take again

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__new__(cls)
        made._turn = threading.RLock()
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_turn"}


def in_turn(method: Callable[Concatenate[Owner, P], R]) -> Callable[Concatenate[Owner, P], R]:
    """Marks a method of an `InTurn`."""

    @functools.wraps(method)
    def call(self: Owner, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._turn:  # pyright: ignore[reportPrivateUsage]
            return method(self, *args, **kwargs)

    return call
