"""A request to stop, which is met after the step that is being made."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Collection, Generator
from types import FrameType
from typing import Any, NoReturn

from dictionary_learning.errors import Stopped

logger = logging.getLogger(__name__)


_AGAIN = 0.05
"""Seconds after which a signal is sent again that came at a bad moment."""
_IMPORTS = "<frozen importlib._bootstrap>"
"""The file of the functions that import modules."""


@contextlib.contextmanager
def ending_at_once(numbers: Collection[int] = (signal.SIGINT, signal.SIGTERM)) -> Generator[None]:
    """Makes SIGTERM raise `Stopped` inside a `with` block, and Ctrl-C KeyboardInterrupt.

    Where these would be lost they come a little later. A Ctrl-C that the process ignores, or that
    is handled otherwise, stays so.

    Args:
        numbers: The signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = _Ending(_imports_behind(sys._getframe()))
    own = [number for number in numbers if number != signal.SIGINT or _raises(signal.getsignal(number))]
    before = {number: signal.signal(number, ending) for number in own}
    try:
        yield
        if ending.waiting:
            ending.raise_for(ending.number)
    finally:
        for timer in ending.waiting:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ending:
    """A handler of signals."""

    def __init__(self, n_imports: int):
        self.n_imports = n_imports  # imports that run the `with` block itself
        self.waiting: list[threading.Timer] = []
        self.number = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _drops_what_is_raised(frame) or _imports_behind(frame) > self.n_imports:
            self.number = number
            self.waiting[:] = [threading.Timer(_AGAIN, os.kill, (os.getpid(), number))]
            self.waiting[0].start()
            return
        self.waiting.clear()
        self.raise_for(number)

    @staticmethod
    def raise_for(number: int) -> NoReturn:
        raise KeyboardInterrupt if number == signal.SIGINT else Stopped(f"Got {signal.Signals(number).name}.")


def _raises(handler: Any) -> bool:
    """Returns whether Ctrl-C raises KeyboardInterrupt."""
    return handler is signal.default_int_handler or isinstance(handler, _Ending)


def _imports_behind(frame: FrameType | None) -> int:
    """Returns how many frames are of the import system: a module whose import fails is half there.

    Packages import others a second time, by C, or take the failure for a missing module.
    """
    n = 0
    while frame is not None:
        n += frame.f_code.co_filename == _IMPORTS
        frame = frame.f_back
    return n


def _drops_what_is_raised(frame: FrameType | None) -> bool:
    """Returns whether a finalizer or a weak reference's callback runs: Python drops its errors."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or os.path.basename(code.co_filename) in (
            "weakref.py",
            "_weakrefset.py",
            "weak.py",
        ):
            return True
        frame = frame.f_back
    return False


def interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Returns what a signal raised, of which another package may have made an error of its own."""
    seen: list[BaseException] = []
    while error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__ or error
    return None


class StopRequest:
    """Notices SIGTERM and Ctrl-C inside a `with` block; a second Ctrl-C ends the process at once.

    One that came too late to be met, after the last step, is sent again at the end of the block.
    Signals reach the main thread alone: elsewhere this does nothing. `is_on` is false for runs that
    have no folder for a checkpoint.
    """

    def __init__(self, is_on: bool) -> None:
        self.signal: signal.Signals | None = None
        self._is_on = is_on and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if self._is_on:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None and self.signal is not None:
            signal.raise_signal(self.signal)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        logger.warning("Got %s: the run stops after this step, and writes a checkpoint.", self.signal.name)
