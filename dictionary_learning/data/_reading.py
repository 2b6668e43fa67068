"""Readers: documents from any position, and the ways to select, order and combine them.

A reader yields each document with a mark: plain data that says where the next document begins.
Reading from a mark yields the documents that would have followed. A reader that wraps another one
stores that reader's mark inside its own, so every combination resumes exactly, and no state holds
documents. A value that is not a document is yielded as a `BadDocument`, which keeps its place.

`epoch` is the number of earlier passes; a random order is drawn anew for each.
"""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import singledispatch
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from dictionary_learning.errors import DataError

Mark = Any
"""Plain data that JSON can hold; None for the beginning."""
_N_SAMPLED = 64
"""Documents that stand for all of them where a run is compared with another."""
_ROWS_AT_ONCE = 64  # rows fetched in one call: a call costs far more than a row


class Reader(ABC):
    """Documents in an order."""

    @property
    def repeatable(self) -> bool:
        """Whether the documents can be read again."""
        return True

    @abstractmethod
    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents from the mark on, each with the mark of the next one."""

    def inside(self, mark: Mark) -> list[tuple["Reader", Mark]]:
        """Returns the readers that it reads, with their marks at its own."""
        return []

    def release(self, mark: Mark) -> None:
        """Says that nothing before a mark is read again; what is read once keeps it until then."""
        for reader, inner in self.inside(mark):
            reader.release(inner)

    def holds(self, mark: Mark) -> bool:
        """Returns whether the documents from a mark on can be read."""
        return all(reader.holds(inner) for reader, inner in self.inside(mark))


@dataclasses.dataclass(frozen=True)
class SequentialReader(Reader):
    """Documents of the iterator that `open` returns. Resuming skips those that were read."""

    open: Callable[[], Iterator[Any]]

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        start = mark or 0
        for n, document in enumerate(islice(self.open(), start, None), start + 1):
            yield document, n


@dataclasses.dataclass(frozen=True)
class MapReader(Reader):
    """Documents that can be fetched by number. The mark is the place in the order.

    Args:
        fetch: Returns the documents with some numbers.
        numbers: The numbers to read, in order.
        seed: The seed of a random order; None keeps the order of `numbers`.
        order_id: The hash of an order that the data was in already (see `seal`).
        path: The file that holds them, if it is one.
    """

    fetch: Callable[[list[int]], Iterable[Any]]
    numbers: Sequence[int] | np.ndarray
    seed: int | None = None
    order_id: str | None = None
    path: Path | None = None

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        order = self.order(epoch)
        for start in range(unseal(mark, self.order_id) or 0, len(order), _ROWS_AT_ONCE):
            numbers = [int(i) for i in order[start : start + _ROWS_AT_ONCE]]  # `datasets` refuses numpy's
            for n, document in enumerate(self.fetch(numbers), start + 1):
                yield document, seal(n, self.order_id)

    def order(self, epoch: int) -> Any:
        if self.seed is None:
            return self.numbers
        return np.asarray(self.numbers)[_permutation(len(self.numbers), self.seed, epoch)]


@dataclasses.dataclass(frozen=True)
class ConcatReader(Reader):
    """The documents of several readers, in order, or in a random order if there is a seed."""

    readers: Sequence[Reader]
    seed: int | None = None

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        first, inner = mark or (0, None)
        n_readers = len(self.readers)
        order = range(n_readers) if self.seed is None else _permutation(n_readers, self.seed, epoch)
        for n in range(first, n_readers):
            for document, following in self.readers[order[n]].read(inner, epoch):
                yield document, [n, following]  # the reader's place in the order, and its mark
            inner = None


@dataclasses.dataclass(frozen=True)
class WrappingReader(Reader):
    """A reader that changes what another reader yields."""

    reader: Reader

    @property
    def repeatable(self) -> bool:
        return self.reader.repeatable

    def inside(self, mark: Mark) -> list[tuple[Reader, Mark]]:
        return [(self.reader, self.mark_inside(mark))]

    def mark_inside(self, mark: Mark) -> Mark:
        """Returns the mark from which the other reader is read, at a mark of this one."""
        return mark


@dataclasses.dataclass(frozen=True)
class WindowShuffleReader(WrappingReader):
    """Documents shuffled inside windows: each window of `size` documents gets a random order."""

    seed: int
    size: int

    def mark_inside(self, mark: Mark) -> Mark:
        return mark and mark[0]

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        # the mark holds where the window begins, its number, and the place in its order
        begin, number, place = mark or (None, 0, 0)
        inner = self.reader.read(begin, epoch)
        while window := list(islice(inner, self.size)):
            order = _permutation(len(window), self.seed, epoch, number)
            end = window[-1][1]
            for n in range(place, len(window)):
                is_last = n == len(window) - 1
                yield window[order[n]][0], [end, number + 1, 0] if is_last else [begin, number, n + 1]
            begin, number, place = end, number + 1, 0


@dataclasses.dataclass(frozen=True)
class SelectReader(WrappingReader):
    """The documents before `stop` whose numbers are selected, the same ones in each epoch."""

    stop: int | None = None
    selects: Callable[[int], bool] = lambda n: True

    def mark_inside(self, mark: Mark) -> Mark:
        return mark and mark[1]

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        n_read, inner = mark or (0, None)
        stop = None if self.stop is None else self.stop - n_read
        # islice requests no document beyond the last, so an iterator loses none
        for n, (document, following) in enumerate(islice(self.reader.read(inner), stop), n_read):
            if self.selects(n):
                yield document, [n + 1, following]  # counts all, not only the selected ones


@dataclasses.dataclass(frozen=True)
class ShareReader(WrappingReader):
    """One of several shares of the documents: every n-th one, in each epoch's order."""

    number: int
    of: int

    def mark_inside(self, mark: Mark) -> Mark:
        return mark and mark[1]

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        n_read, inner = mark or (0, None)
        for n, (document, following) in enumerate(self.reader.read(inner, epoch), n_read):
            if n % self.of == self.number:
                yield document, [n + 1, following]


def share(reader: Reader, number: int, of: int) -> Reader:
    """Returns a reader of one of `of` equal shares, which together are all documents."""
    if isinstance(reader, MapReader):  # no document of another share is fetched
        return dataclasses.replace(reader, numbers=reader.order(0)[number::of])
    return ShareReader(reader, number, of)


@singledispatch
def hold_out(reader: Reader, every: int) -> tuple[Reader, Reader]:
    """Returns readers of all but every n-th document, and of every n-th; the same in each epoch."""
    rest = SelectReader(reader, selects=lambda n: n % every != 0)
    return rest, SelectReader(reader, selects=lambda n: n % every == 0)


@hold_out.register
def _(reader: MapReader, every: int) -> tuple[Reader, Reader]:
    order = reader.order(0)
    # the random order of epoch 0 decides what is held out, so that it stays held out in all epochs
    rest = np.delete(np.asarray(order), np.arange(0, len(order), every))
    return dataclasses.replace(reader, numbers=rest), dataclasses.replace(reader, numbers=order[::every])


def take(reader: Reader, n: int) -> Reader:
    """Returns a reader of the first n documents."""
    if isinstance(reader, MapReader):
        return dataclasses.replace(reader, numbers=reader.order(0)[:n])
    return SelectReader(reader, stop=n)


def shuffle(reader: Reader, seed: int, window: int) -> Reader:
    """Returns a reader of the documents in a random order.

    All documents are shuffled if they can be fetched by number; else the files are, and then the
    documents inside windows.
    """
    if isinstance(reader, MapReader):
        return dataclasses.replace(reader, numbers=reader.order(0), seed=seed)
    if isinstance(reader, ConcatReader):
        reader = ConcatReader(reader.readers, seed)
    return WindowShuffleReader(reader, seed, window)


def files_of(reader: Any) -> list[Path]:
    """Returns the local files that a reader reads, in their order."""
    own, inner = getattr(reader, "path", None), getattr(reader, "reader", None)
    parts = [*getattr(reader, "readers", ()), *([] if inner is None else [inner])]
    return [*([] if own is None else [own]), *(path for part in parts for path in files_of(part))]


def samples_of(reader: Any) -> list[str]:
    """Returns a hash of some documents, and of their number, for each part that is in memory.

    Streams can be read only once, and files have checksums of their own.
    """
    inner = getattr(reader, "reader", None)
    parts = [*getattr(reader, "readers", ()), *([] if inner is None else [inner])]
    own: list[str] = []
    if isinstance(reader, MapReader) and reader.path is None:
        size = len(reader.numbers)
        digest = hashlib.sha256(f"{size} {reader.order_id}".encode())
        places = np.unique(np.linspace(0, size - 1, _N_SAMPLED).round().astype(int)) if size else ()
        for document in reader.fetch([int(reader.numbers[place]) for place in places]):
            plain = document.tolist() if hasattr(document, "tolist") else document
            digest.update(f"{plain!r}\0".encode("utf-8", "surrogatepass"))
        own = [digest.hexdigest()]
    return [*own, *(sample for part in parts for sample in samples_of(part))]


def seal(mark: Mark, order_id: str | None) -> Mark:
    """Stores the hash of the data's own random order in a mark.

    Data that was shuffled without a seed has another order in the next process, where the mark
    would silently point to other documents.
    """
    return mark if order_id is None else {"order": order_id, "mark": mark}


def unseal(mark: Mark, order_id: str | None) -> Mark:
    """Returns the mark that was sealed, if it belongs to this order of the data."""
    if not isinstance(mark, dict) or "order" not in mark:
        return mark
    if mark["order"] != order_id:
        raise DataError(
            "The data set has another order than when the state was stored, so the run cannot resume: it was shuffled "
            "without a seed, or with another one. Shuffle it with a seed, or pass shuffle_seed to as_source."
        )
    return mark["mark"]


def _permutation(n: int, *seeds: int) -> Any:
    # a sequence of seeds: epochs and windows must not share orders, as seed + epoch would
    return np.random.default_rng([abs(s) for s in seeds]).permutation(n)
