"""Runs a compiled loop over rows on as many threads as PyTorch uses."""

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
    pool = _pool(torch.get_num_threads(), os.getpid())
    for done in [pool.submit(kernel, *given, first, last) for first, last in parts]:
        done.result()


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


@functools.cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Returns the threads of a process: those of another are not copied by a fork."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="kernels")
