"""A request to stop, which is met after the step that is being made."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any

from dictionary_learning.errors import Stopped

logger = logging.getLogger(__name__)


_AGAIN = 0.05
"""Seconds after which a signal is sent again that came at a bad moment."""


@contextlib.contextmanager
def ending_at_once() -> Generator[None]:
    """Makes SIGTERM raise `Stopped` inside a `with` block, as Ctrl-C raises KeyboardInterrupt."""
    waiting: list[threading.Timer] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if _drops_what_is_raised(frame):
            waiting[:] = [threading.Timer(_AGAIN, os.kill, (os.getpid(), number))]
            waiting[0].start()
            return
        waiting.clear()
        raise Stopped(f"Got {signal.Signals(number).name}.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
        if waiting:
            raise Stopped("Got SIGTERM.")
    finally:
        for timer in waiting:
            timer.cancel()
        signal.signal(signal.SIGTERM, before)


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
