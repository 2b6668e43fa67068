"""Ranks that are threads of one process: what they tell each other is the same, and starts at once."""

import copy
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from dictionary_learning.parallel import ALONE, Ranks

TIMEOUT = 60


class _Table:
    def __init__(self, size: int):
        self.barrier, self.slots = threading.Barrier(size, timeout=TIMEOUT), [None] * size


class Threads(Ranks):
    """The threads of a table; `tables` has one for each group, by its members."""

    def __init__(self, members: tuple[int, ...], number: int, tables: dict[tuple[int, ...], _Table]):
        self.members, self._tables = members, tables
        self.rank, self.size = members.index(number), len(members)
        self._number = number
        self._table = tables.setdefault(members, _Table(self.size))
        self.calls: list[tuple[str, int]] = []
        """What was told, and how many bytes of it were this rank's."""

    def _all(self, value: Any) -> list[Any]:
        table = self._table
        table.slots[self.rank] = value.detach().clone() if isinstance(value, Tensor) else value
        table.barrier.wait()
        found = list(table.slots)
        table.barrier.wait()
        return found

    def sum(self, x: Tensor) -> Tensor:
        return torch.stack(self._all(x)).sum(0).to(x.dtype)

    def mean(self, x: Tensor, n: int) -> Tensor:
        whole = self.sum(x.detach() * n) / self.total(n)
        return x + (whole - x.detach()) if x.requires_grad else whole

    def minimum(self, x: Tensor) -> Tensor:
        return torch.stack(self._all(x)).amin(0)

    def gather(self, rows: Tensor) -> Tensor:
        return torch.cat(self._all(rows))

    def sum_(self, tensors: Any) -> None:
        for x in tensors:
            x.copy_(self.sum(x))

    def take_first_(self, tensors: Any) -> None:
        for x in tensors:
            x.data.copy_(self._all(x)[0])

    def add(self, x: Tensor) -> Tensor:
        return _Add.apply(x, self)

    def lend(self, x: Tensor) -> Tensor:
        return _Lend.apply(x, self)

    def stack(self, x: Tensor) -> Tensor:
        return torch.stack(self._all(x))

    def grid(self, columns: int) -> tuple[Ranks, Ranks]:
        rows = [self.members[start : start + columns] for start in range(0, self.size, columns)]
        return self._member_of(list(zip(*rows, strict=True))), self._member_of(rows)

    def _member_of(self, groups: Any) -> Ranks:
        own = next(members for members in groups if self._number in members)
        return Threads(tuple(own), self._number, self._tables) if len(own) > 1 else ALONE

    def tell(self, numbers: Any) -> list[list[int]]:
        return self._all(list(numbers))

    def share(self, value: Any, source: int = 0) -> Any:
        return copy.deepcopy(self._all(value)[source])

    def collect(self, value: Any) -> list[Any]:
        return copy.deepcopy(self._all(value))


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        return ranks.sum(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class _Lend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.ranks.sum(grad), None


def run_threads(n: int, function: Callable[[], Any]) -> list[Any]:
    """Returns what a function that trains returned on each of n threads, which are the ranks of its runs."""
    tables: dict[tuple[int, ...], _Table] = {}
    found: list[Any] = [None] * n
    local = threading.local()

    def work(number: int) -> None:
        local.ranks = Threads(tuple(range(n)), number, tables)
        try:
            found[number] = function()
        except BaseException as error:  # noqa: BLE001  (raised below)
            found[number] = error
            for table in tables.values():
                table.barrier.abort()

    with mock.patch("dictionary_learning.training.start", lambda: local.ranks):
        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT * 4)
    errors = [one for one in found if isinstance(one, BaseException)]
    for error in sorted(errors, key=lambda one: isinstance(one, threading.BrokenBarrierError)):
        raise error
    return found
