"""Calls beside each other on a CPU, each on its share of PyTorch's threads.

Two forward passes, or the steps of two dictionaries, on one core each take less time than one after
the other on both: between two operations of a pass every thread waits for the last, and what is not
divided among threads leaves a core idle. Measured in docs/performance.md.
"""

import contextvars
import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_N_WORKERS = 2


def is_worthwhile(device: torch.device) -> bool:
    """Returns whether work on a device may be divided among workers.

    Not in a thread that is itself beside others, as one that reads ahead: the number of threads of
    some libraries is the process's.
    """
    is_main = threading.current_thread() is threading.main_thread()
    return device.type == "cpu" and torch.get_num_threads() >= _N_WORKERS and is_main


def side_by_side(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Returns what the calls return, in their order.

    Each has the same number of threads, whoever makes it, so its bits do not depend on the others.
    The first error is raised when no call runs any more, and calls that have not begun are not
    made.
    """
    n_threads, numbers, must_stop = torch.get_num_threads(), iter(range(len(calls))), threading.Event()
    returned: dict[int, T] = {}
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    autocast = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")

    def work() -> None:
        torch.set_num_threads(n_threads // _N_WORKERS)
        try:
            with (
                torch.inference_mode(modes[1]),
                torch.set_grad_enabled(modes[0]),
                torch.autocast("cpu", autocast[0], enabled=autocast[1]),
            ):
                while not must_stop.is_set() and (number := next(numbers, None)) is not None:
                    returned[number] = calls[number]()
        except BaseException:
            must_stop.set()
            raise

    # the backend that is forced, and the like
    others = [_worker(os.getpid()).submit(contextvars.copy_context().run, work) for _ in range(_N_WORKERS - 1)]
    try:
        work()
    finally:
        _wait(others)
        torch.set_num_threads(n_threads)
    for other in others:
        other.result()
    return [returned[number] for number in range(len(calls))]


def _wait(others: Sequence[Future[Any]]) -> None:
    """Waits until calls have ended, also after an interrupt: what they change is whole then."""
    interrupt: BaseException | None = None
    while not all(other.done() for other in others):
        try:
            for other in others:
                other.exception()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


@functools.cache
def _worker(process: int) -> ThreadPoolExecutor:
    """Returns the threads of a process: those of another are not copied by a fork."""
    return ThreadPoolExecutor(_N_WORKERS - 1, thread_name_prefix="beside")
