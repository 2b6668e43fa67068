"""Reading documents from any place on, and the ways to choose among them and to order them.

A reader yields each document with a mark: plain data that says where the next one begins. Reading again from a mark gives the
documents that would have come next. Whatever stands on another reader keeps that one's mark within its own, so all of them resume
exactly, and none keeps documents in its state.

`epoch` counts how often the documents were read before; what draws a random order draws another one for each.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import singledispatch
from itertools import islice
from typing import Any

import numpy as np

Mark = Any
"""Plain data that JSON can hold; None for the beginning."""
_ROWS_AT_ONCE = 64
"""Rows fetched in one call: a call costs far more than a row."""


class Reader(ABC):
    """Documents in an order."""

    repeatable: bool = True

    @abstractmethod
    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents from the mark on, each with the mark of the next."""


@dataclasses.dataclass(frozen=True)
class Counted(Reader):
    """Documents of an iterator, which resumes by leaving out as many as were read."""

    open: Callable[[], Iterator[Any]]
    repeatable: bool = True

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents, with their count."""
        start = mark or 0
        for n, document in enumerate(islice(self.open(), start, None), start + 1):
            yield document, n


@dataclasses.dataclass(frozen=True)
class Indexed(Reader):
    """Documents that can be fetched by number.

    Args:
        fetch: returns the documents of some numbers.
        numbers: which of them, in order.
        seed: of a random order; None for that of `numbers`.
    """

    fetch: Callable[[Sequence[int]], Sequence[Any]]
    numbers: Any
    seed: int | None = None

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents, with the place of the next in the order."""
        order = self.order(epoch)
        for start in range(mark or 0, len(order), _ROWS_AT_ONCE):
            some = [int(i) for i in order[start : start + _ROWS_AT_ONCE]]
            for n, document in enumerate(self.fetch(some), start + 1):
                yield document, n

    def order(self, epoch: int) -> Any:
        """Returns the numbers in the order in which they are read."""
        if self.seed is None:
            return self.numbers
        return np.asarray(self.numbers)[_permutation(len(self.numbers), self.seed, epoch)]


@dataclasses.dataclass(frozen=True)
class Chained(Reader):
    """The documents of one reader after those of another.

    Args:
        readers: the readers.
        seed: of a random order of the readers; None for theirs.
    """

    readers: Sequence[Reader]
    seed: int | None = None

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents, with the reader's number and its mark."""
        begin, inner = mark or (0, None)
        many = len(self.readers)
        order = range(many) if self.seed is None else _permutation(many, self.seed, epoch)
        for n in range(begin, many):
            for document, following in self.readers[order[n]].read(inner if n == begin else None, epoch):
                yield document, [n, following]


@dataclasses.dataclass(frozen=True)
class Windows(Reader):
    """Documents shuffled among those that stand near: one window after another, each in a random order."""

    reader: Reader
    seed: int
    size: int

    @property
    def repeatable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether they can be read again."""
        return self.reader.repeatable

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents, with the window's mark, its number and the place in it."""
        begin, number, place = mark or (None, 0, 0)
        inner = self.reader.read(begin, epoch)
        while window := list(islice(inner, self.size)):
            order = _permutation(len(window), self.seed, epoch, number)
            end = window[-1][1]
            for n in range(place, len(window)):
                last = n == len(window) - 1
                yield window[order[n]][0], [end, number + 1, 0] if last else [begin, number, n + 1]
            begin, number, place = end, number + 1, 0


@dataclasses.dataclass(frozen=True)
class First(Reader):
    """The first documents, and no more; the same ones whenever they are read."""

    reader: Reader
    n: int

    @property
    def repeatable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether they can be read again."""
        return self.reader.repeatable

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents, with their count and the mark."""
        before, inner = mark or (0, None)
        # islice asks for no document beyond the last: an iterator loses none
        for count, (document, following) in enumerate(islice(self.reader.read(inner), self.n - before), before + 1):
            yield document, [count, following]


@dataclasses.dataclass(frozen=True)
class Part(Reader):
    """Every n-th document, or all the others; the same ones whenever they are read."""

    reader: Reader
    every: int
    held: bool

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents, with the count of all and the mark."""
        before, inner = mark or (0, None)
        for count, (document, following) in enumerate(self.reader.read(inner), before):
            if (count % self.every == 0) == self.held:
                yield document, [count + 1, following]


@singledispatch
def split(reader: Reader, every: int) -> tuple[Reader, Reader]:
    """Returns readers of all but every n-th document, and of every n-th; no epoch moves a document between them."""
    return Part(reader, every, False), Part(reader, every, True)


@split.register
def _(reader: Indexed, every: int) -> tuple[Reader, Reader]:
    order = reader.order(0)
    held = np.arange(0, len(order), every)
    rest = np.delete(np.asarray(order), held)
    return Indexed(reader.fetch, rest, reader.seed), Indexed(reader.fetch, order[::every], reader.seed)


@singledispatch
def first(reader: Reader, n: int) -> Reader:
    """Returns a reader of the first n documents."""
    return First(reader, n)


@first.register
def _(reader: Indexed, n: int) -> Reader:
    return Indexed(reader.fetch, reader.order(0)[:n], reader.seed)


@singledispatch
def shuffled(reader: Reader, seed: int, window: int) -> Reader:
    """Returns a reader of the documents in a random order: over all of them where they have numbers, else window by window."""
    return Windows(reader, seed, window)


@shuffled.register
def _(reader: Indexed, seed: int, window: int) -> Reader:
    return Indexed(reader.fetch, reader.order(0), seed)


@shuffled.register
def _(reader: Chained, seed: int, window: int) -> Reader:
    return Windows(Chained(reader.readers, seed), seed, window)


def _permutation(n: int, *seeds: int) -> Any:
    return np.random.default_rng([abs(s) for s in seeds]).permutation(n)
