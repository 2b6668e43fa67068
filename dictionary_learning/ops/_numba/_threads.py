"""Runs a compiled loop over rows on as many threads as PyTorch uses, and on the same ones.

After each operation PyTorch's threads stay awake for some milliseconds, in which threads of our own
would share the cores with them: with two cores a step took 1.15 times as long.
"""

import ctypes
import functools
import itertools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

_LEAST = 64  # rows of a part at least


def in_parts(kernel: Callable[..., None], n: int, *arguments: Any) -> None:
    """Calls a kernel for n rows: its last arguments are the first row and that after the last."""
    by_bounds(kernel, _even(n), *arguments)


def by_bounds(kernel: Callable[..., None], bounds: Iterable[tuple[int, int]], *arguments: Any) -> None:
    """Calls a kernel for each pair of bounds, which are its last arguments."""
    parts = list(bounds)
    given = [array.detach().numpy() if isinstance(array, Tensor) else array for array in arguments]
    if len(parts) < 2:
        for first, last in parts:
            kernel(*given, first, last)
        return
    run_beside([functools.partial(kernel, *given, first, last) for first, last in parts])


def _even(n: int) -> list[tuple[int, int]]:
    n_parts = max(1, min(torch.get_num_threads(), n // _LEAST))
    starts = [n * i // n_parts for i in range(n_parts + 1)]
    return list(itertools.pairwise(starts))


def even_pairs(offsets: Tensor) -> list[tuple[int, int]]:
    """Returns bounds of segments that have about as many pairs each."""
    n_segments, n_parts = len(offsets) - 1, torch.get_num_threads()
    if n_parts == 1 or n_segments < _LEAST:
        return [(0, n_segments)]
    wanted = torch.arange(1, n_parts) * int(offsets[-1]) // n_parts
    starts = [0, *torch.searchsorted(offsets, wanted).clamp_max(n_segments).tolist(), n_segments]
    return [(a, b) for a, b in itertools.pairwise(starts) if a < b]


def run_beside(calls: list[Callable[[], None]]) -> None:
    """Makes each call in a thread of its own, and raises the first error after all have ended."""
    team = _openmp()
    if team is None:
        pool = _pool(len(calls), os.getpid())
        for done in [pool.submit(call) for call in calls]:
            done.result()
        return
    waiting, errors = iter(calls), list[BaseException]()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def work(_: Any) -> None:
        try:
            for call in waiting:  # of all threads: the team may be smaller than was asked for
                call()
        except BaseException as error:  # noqa: BLE001  (an interrupt, too: no exception passes through OpenMP)
            errors.append(error)

    team(work, None, len(calls), 0)
    if errors:
        raise errors[0]


@functools.cache
def _openmp() -> Any:
    """Returns what starts a team in PyTorch's OpenMP; None where that is not GCC's.

    `GOMP_parallel` is what GCC compiles a parallel region to: part of the interface of libgomp
    since GCC 4.9.
    """
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        start = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    start.restype, start.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return start


@functools.cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Returns the threads of a process: those of another are not copied by a fork."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="kernels")
