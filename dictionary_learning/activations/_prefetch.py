"""Reads ahead in a thread, so that the model runs while dictionaries take their steps."""

import collections
import contextlib
import os
import threading
import weakref
from typing import Any, NamedTuple

import torch

from dictionary_learning.activations._reader import RowReader, Rows, RowSource
from dictionary_learning.errors import ConfigError

_POLL = 0.2  # seconds after which a waiting thread checks whether it should stop


class _Item(NamedTuple):
    """A result of the thread: rows, and the reader's state after them; or an error."""

    rows: Rows | None
    state: dict[str, Any] | None
    error: BaseException | None
    ready: Any = None  # CUDA event that is recorded when the rows are computed


class _Bell:
    """Wakes another thread; an `Event` has a lock that an interrupt may leave held."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has rung already
            self._lock.release()

    def wait(self) -> None:
        self._lock.acquire(timeout=_POLL)


class _Exchange:
    """What thread and owner share. It has no permits that an interrupt could lose."""

    def __init__(self) -> None:
        self.items: collections.deque[_Item] = collections.deque()
        self.added, self.taken = _Bell(), _Bell()
        self.working = threading.Lock()  # held by the one thread that reads
        self.must_stop = self.is_awaited = False


class Prefetcher(RowSource):
    """Reads the next rows before they are requested; nothing else may use the reader.

    At most `depth` batches of rows are ahead, waiting or being read. An error in the thread is
    raised by the next `read`. State and counts belong to the rows that were returned: rows ahead
    are read again after the state is loaded.
    """

    def __init__(self, reader: RowSource, n_contexts: int, depth: int = 1):
        self._reader, self._n_contexts, self._depth = reader, n_contexts, depth
        self.sites, self.name = reader.sites, reader.name
        self._reset()

    def read(self, n_contexts: int) -> Rows | None:
        """Returns the next rows, or None at the end of the data."""
        if n_contexts != self._n_contexts:  # at most so many, see `RowSource.read`
            raise ConfigError(f"{self._n_contexts} contexts are read ahead at once; {n_contexts} were asked for.")
        if self._process not in (None, os.getpid()):
            raise ConfigError(
                f"{self.name} is read ahead by a thread of another process, which a fork does not copy. Set prefetch=0"
                ", or build the buffer in the process that reads it."
            )
        shared = self._exchange
        while not shared.items:
            shared.is_awaited = True
            self._run()
            shared.added.wait()
        shared.is_awaited = False
        item = shared.items[0]
        if item.error is not None:
            raise item.error
        assert item.state is not None
        self._state = item.state
        self.load_counts(item.state)
        if item.rows is None:
            return None
        if item.ready is not None:
            torch.cuda.current_stream().wait_event(item.ready)
        # the item leaves the queue at the end, so that an interrupt before loses no rows
        shared.items.popleft()
        shared.taken.ring()
        return item.rows

    def read_again(self, state: dict[str, Any], n_contexts: int) -> Rows | None:
        self.close()
        rows = self._reader.read_again(state, n_contexts)
        self._reset()
        return rows

    def look(self, n_contexts: int) -> None:
        self.close()
        self._reader.load_state_dict(self._state)  # rows ahead are read again: there are none at the start
        self._reader.look(n_contexts)
        self._reset()

    def expect(self, n_rows: int | None) -> None:
        if n_rows == self.expected:
            return
        self.close()
        if self._exchange.items:  # read again, as few contexts as are needed
            self._reader.load_state_dict(self._state)
        self._reader.expect(n_rows)
        self._reset()

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self._reader.load_state_dict(state)
        self._reset()

    def release(self, state: dict[str, Any]) -> None:
        self._reader.release(state)

    def close(self) -> None:
        """Stops the thread. Rows that it has read are returned by the next calls of `read`."""
        self._exchange.must_stop = True
        self._exchange.taken.ring()
        while self._process == os.getpid() and self._exchange.working.locked():
            self._exchange.added.wait()
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()
        self._thread = self._process = None

    def __reduce__(self) -> Any:
        # the thread stays, and a copy of its reader goes back to the rows that were returned
        self.close()
        return _prefetcher, (self._reader, self._n_contexts, self._depth, self._state)

    def _reset(self) -> None:
        self._exchange = _Exchange()
        self._thread: threading.Thread | None = None
        self._process: int | None = None  # the one that runs the thread
        self._state = self._reader.state_dict()
        self.load_counts(self._state)

    def _run(self) -> None:
        """Starts a thread if none is running."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._exchange.must_stop = False
        self._process = os.getpid()
        # a weak reference: the thread ends when its owner is forgotten
        work = (weakref.ref(self), self._reader, self._n_contexts, self._depth, self._exchange)
        self._thread = threading.Thread(target=_work, args=work, name="prefetch", daemon=True)
        self._thread.start()


def _prefetcher(reader: RowSource, n_contexts: int, depth: int, state: dict[str, Any]) -> Prefetcher:
    reader.load_state_dict(state)
    return Prefetcher(reader, n_contexts, depth)


def ahead(reader: RowReader, n_contexts: int, prefetch: int | None) -> RowSource:
    """Returns a reader that is `prefetch` forward passes ahead; by default 1 on a GPU, else 0."""
    depth = int(reader.model.device.type == "cuda") if prefetch is None else prefetch
    return Prefetcher(reader, n_contexts, depth) if depth else reader


def _work(owner: "weakref.ref[Prefetcher]", reader: RowSource, n_contexts: int, depth: int, shared: _Exchange) -> None:
    """Reads, unless another thread does: one whose start was interrupted may begin late."""
    if not shared.working.acquire(blocking=False):
        return
    try:
        _read_ahead(owner, reader, n_contexts, depth, shared)
    finally:
        shared.working.release()
        shared.added.ring()


def _read_ahead(
    owner: "weakref.ref[Prefetcher]", reader: RowSource, n_contexts: int, depth: int, shared: _Exchange
) -> None:
    """Reads until the data ends, an error occurs, or the owner is gone."""
    stream = torch.cuda.Stream() if torch.cuda.is_available() else None
    while not shared.must_stop and owner() is not None:
        if len(shared.items) >= depth:
            shared.taken.wait()
            continue
        has_enough = reader.expected is not None and reader.expected <= 0
        if has_enough and (shared.items or not shared.is_awaited):  # in this order: it is set before an item leaves
            return
        try:
            with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
                rows = reader.read(n_contexts)
                done = stream.record_event() if stream is not None else None
            item = _Item(rows, reader.state_dict(), None, done)
        except BaseException as error:  # noqa: BLE001  (raised again by the thread that asks for rows)
            item = _Item(None, None, error)
        shared.items.append(item)
        shared.added.ring()
        if item.rows is None:
            return
