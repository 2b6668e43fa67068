"""Reading ahead in a thread, so that the model runs while the dictionaries step."""

import contextlib
import queue
import threading
import weakref
from typing import Any, NamedTuple

import torch

from dictionary_learning.activations.reader import Rows, RowSource
from dictionary_learning.errors import ConfigError

_POLL = 0.2
"""Seconds after which a waiting thread looks whether it should end."""


class _Item(NamedTuple):
    """What the thread hands over."""

    rows: Rows | None
    state: dict[str, Any] | None
    """Of the reader, after these rows."""
    error: BaseException | None
    ready: Any = None
    """An event that comes when the rows are there, where a device computes them."""


class Prefetcher(RowSource):
    """Reads the next rows before they are asked for.

    At most `depth` batches of rows are ahead, waiting or in the making. What goes wrong in the thread is raised where rows are
    asked for. State and counts are those of the rows that were taken: what is ahead will be read again by whoever loads the state.

    Args:
        reader: what rows are read with; nothing else may use it.
        n_contexts: how many contexts are read at once.
        depth: how many batches may be ahead.

    Raises:
        ConfigError: none may be.
    """

    def __init__(self, reader: RowSource, n_contexts: int, depth: int = 1):
        if depth < 1:
            raise ConfigError(
                f"Got prefetch={depth}; it is how many forward passes are made ahead: 1 or more, or 0 for none."
            )
        self._reader, self._n_contexts, self._depth = reader, n_contexts, depth
        self.sites, self.name = reader.sites, reader.name
        self._begin()

    def read(self, n_contexts: int) -> Rows | None:
        """Returns the next rows, or None at the end of the data.

        Raises:
            ConfigError: another number of contexts is asked for than is being read.
        """
        if n_contexts != self._n_contexts:
            raise ConfigError(f"{self._n_contexts} contexts are read ahead at once; {n_contexts} were asked for.")
        if self._last is None:
            self._run()
            item = self._ready.get()
            self._free.release()
            if item.rows is None:
                self._last = item
        else:
            item = self._last
        if item.error is not None:
            raise item.error
        assert item.state is not None
        self._state = item.state
        self.take_counts(item.state)
        if item.ready is not None:
            torch.cuda.current_stream().wait_event(item.ready)
        return item.rows

    def state_dict(self) -> dict[str, Any]:
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.close()
        self._reader.load_state_dict(state)
        self._begin()

    def close(self) -> None:
        """Ends the thread; what it has read waits for the next call of `read`, which begins another."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _begin(self) -> None:
        self._ready: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._free = threading.Semaphore(self._depth)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._last: _Item | None = None  # the end of the data, or an error
        self._state = self._reader.state_dict()
        self.take_counts(self._state)

    def _run(self) -> None:
        if self._thread is None and self._ready.empty():
            self._stop = threading.Event()
            work = (weakref.ref(self), self._reader, self._n_contexts, self._ready, self._free, self._stop)
            self._thread = threading.Thread(target=_work, args=work, name="prefetch", daemon=True)
            self._thread.start()


def _work(
    owner: "weakref.ref[Prefetcher]",
    reader: RowSource,
    n_contexts: int,
    ready: "queue.SimpleQueue[_Item]",
    free: threading.Semaphore,
    stop: threading.Event,
) -> None:
    """Reads until the data ends, something goes wrong, or nobody is left to take what is read."""
    stream = torch.cuda.Stream() if torch.cuda.is_available() else None
    while not stop.is_set() and owner() is not None:
        if not free.acquire(timeout=_POLL):
            continue
        if stop.is_set():
            free.release()
            return
        try:
            with torch.cuda.stream(stream) if stream is not None else contextlib.nullcontext():
                rows = reader.read(n_contexts)
                done = stream.record_event() if stream is not None else None
            item = _Item(rows, reader.state_dict(), None, done)
        except BaseException as error:  # noqa: BLE001  (raised again by the thread that asks for rows)
            item = _Item(None, None, error)
        ready.put(item)
        if item.rows is None:
            return
