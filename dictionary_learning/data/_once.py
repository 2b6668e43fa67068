"""What can be read only once, such as a generator; its last items can be read again."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from typing import Any, NoReturn

from dictionary_learning.data._reading import Mark, Reader
from dictionary_learning.errors import DataError

_END = object()
"""What follows the last item."""


class OnceReader(Reader):
    """Documents of an iterator, which ends once. The mark is their number.

    Items are kept until `release` says that they are not needed again. So whoever was interrupted
    between an item and its use goes back to it, as in a list. An interrupt of the iterator's own
    code is an error from then on, since the item is lost. There are no others: Python raises
    interrupts between its own instructions, and an item is fetched and kept by one call without
    such.

    Args:
        items: The iterator.
        name: Its name in errors.
        as_document: Makes a document of an item.
    """

    def __init__(self, items: Iterator[Any], name: str, as_document: Callable[[Any], Any] = lambda item: item):
        self._name, self._as_document = name, as_document
        self._entered: list[bool] = []  # not empty once the iterator was asked for an item
        asked, numbered = map(self._entered.append, repeat(True)), enumerate(chain(items, repeat(_END)))
        self._items: Iterator[tuple[None, tuple[int, Any]]] = zip(asked, numbered)  # noqa: B905  (both are endless)
        self._arrived: deque[tuple[None, tuple[int, Any]]] = deque()  # an item that is not among those yet
        self._kept: dict[int, Any] = {}  # items by their numbers, from the first that was not released
        self._first = 0
        self._is_broken = False

    @property
    def repeatable(self) -> bool:
        return False

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        n = mark or 0
        while self._fetch(n):
            document, n = self._as_document(self._kept[n]), n + 1
            yield document, n

    def release(self, mark: Mark) -> None:
        while self._first < (mark or 0):
            self._first += 1  # before the item goes: it may be another thread, or interrupted
            self._kept.pop(self._first - 1, None)

    def holds(self, mark: Mark) -> bool:
        return self._first <= (mark or 0)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self._name} is read once, and not by a copy too")

    def _fetch(self, number: int) -> bool:
        """Reads on until an item of a number is kept; False at the end."""
        if not self.holds(number):
            raise DataError(
                f"{self._name} can be read only once, and was read beyond this place. Pass a list, a file or a data "
                "set."
            )
        while number not in self._kept:
            self._read_on()
            _, (arrived, item) = self._arrived[0]
            if item is _END:
                return False
            is_skipped = arrived < number and arrived not in self._kept  # a run that is resumed skips what it has read
            if is_skipped:
                self.release(arrived + 1)
            else:
                self._kept[arrived] = item
            self._arrived.clear()
        return True

    def _read_on(self) -> None:
        if self._is_broken:
            raise DataError(
                f"{self._name} was interrupted while it was read, and can be read only once. Pass a list, a file or a "
                "data set."
            )
        if self._arrived:  # and an interrupt came before it was kept, or it is the end
            return
        self._entered.clear()
        try:
            self._arrived.extend(islice(self._items, 1))
        except BaseException:
            self._is_broken = bool(self._entered) and not self._arrived
            raise
