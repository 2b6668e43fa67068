"""Rows of activations in memory, each served once, in an order that is drawn anew at each refill.

Rows live in storage that is allocated once. `order` is a permutation of the slots whose rows are
not served yet; a batch is its next stretch. When less than half is left, the model runs over more
text, its activations fill the slots that were served, and a new order is drawn. All sites share the
order, so row i of a batch is the same token at each of them. A batch costs one gather.

Where it is known how many rows will be taken, the model reads no more text than they need: a short
run shuffles all of its rows at once, and allocates no slots beyond these; the last refill stops
where the run ends.
"""

import contextlib
import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dictionary_learning._plain import as_bytes, counted
from dictionary_learning._progress import Progress
from dictionary_learning.activations._origins import Origins, read_again
from dictionary_learning.activations._reader import RowSource
from dictionary_learning.activations._storage import RowStorage
from dictionary_learning.activations._stream import expected_partners
from dictionary_learning.errors import ConfigError
from dictionary_learning.sites import Site

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Slots(NamedTuple):
    """Places for rows in memory, and what fills them."""

    n: int
    widths: Mapping[Site, int]
    dtype: torch.dtype
    """As which rows are stored."""
    device: torch.device
    read_dtype: torch.dtype
    """As which they are read, on the reader's device."""
    read_device: torch.device
    n_contexts: int
    """Contexts of one read."""
    at_once: int
    """Rows of one read at most."""
    batch: int
    """Rows of a batch, for what is told of it."""

    @property
    def n_bytes(self) -> int:
        """Memory of all of them."""
        return self.n * sum(self.widths.values()) * self.dtype.itemsize


def slots_used(n: int, n_rows: int | None, at_once: int) -> int:
    """Returns how many of n slots a run of so many rows fills; None rows are not known.

    The last read may be of some rows too many.
    """
    return n if n_rows is None else min(n, n_rows + at_once)


class ShuffledRows:
    """Serves what a reader reads, shuffled.

    What an interrupt or an error has ended goes on where it was. So values that belong together are
    assigned in one statement without a call, in which Python raises no interrupt.

    Args:
        reader: Reads the rows; nothing else may use it meanwhile.
        slots: Where they are held.
        seed: Seed of the orders.
        retrace: Whether a state names the rows instead of holding them.
    """

    def __init__(self, reader: RowSource, slots: Slots, *, seed: int, retrace: bool):
        self.reader, self.slots = reader, slots
        self._generator = torch.Generator().manual_seed(seed)
        self._document = torch.full((slots.n,), -1)  # document of each slot's row
        self._origins = Origins(slots.n) if retrace else None
        self._ended = False
        self._expected: int | None = None  # rows that will still be served; None where that is not known
        self._reached: dict[str, Any] | None = None  # during a refill: the reader's state after the last rows written
        self._said = ""  # what was last told of the tokens that were read
        self._clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_generator": self._generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._generator = torch.Generator().set_state(state["_generator"])

    @property
    def n(self) -> int:
        """Number of rows that are held and not served yet."""
        return len(self._order) - self._cursor

    @property
    def were_read(self) -> bool:
        """Whether memory is taken, since rows were read."""
        return self._storage is not None

    def prepare(self, n: int) -> bool:
        """Reads the next n rows for `serve`, or fewer at the end of the data; False after it."""
        self.finish_refill()
        if self._expected == 0:
            self.expect(None)
        while needed := n - self._n_in_parts():
            # without room there is nothing to refill: so a refill that was interrupted is made once
            has_room = self._cursor + len(self._spare) >= self.slots.at_once
            is_low = self.n < max(self.slots.n // 2, needed) and not self._has_enough()
            if is_low and has_room and not self._ended:
                self.refill()
            if not self.n:
                break
            slots = self._order[self._cursor : self._cursor + needed]
            part, cursor = self._read(slots), self._cursor + len(slots)
            self._parts, self._cursor = [*self._parts, part], cursor
        return bool(self._parts)

    def serve(self, form: Callable[[Mapping[Site, Tensor]], T]) -> T:
        """Returns what a function makes of the rows that are ready, which then are served."""
        parts = self._parts
        # only a batch larger than half of the slots has several parts
        batch = parts[0] if len(parts) == 1 else {s: torch.cat([part[s] for part in parts]) for s in parts[0]}
        served, left = form(batch), None if self._expected is None else max(self._expected - _length(batch), 0)
        self._parts, self._expected = [], left
        return served

    def sample(self, n: int) -> dict[Site, Tensor]:
        """Returns up to n rows that will be served later."""
        if self.n < min(n, self.slots.n // 2) and not self._ended and not self._has_enough():
            self.refill()
        return self._read(self._order[self._cursor : self._cursor + n])

    def expect(self, n: int | None) -> None:
        """Says how many rows will be taken from now on; None: it is not known."""
        self._expected = n
        held = self.n + self._n_filled + self._n_in_parts()
        self.reader.expect(None if n is None else n - held)

    def reseed(self, seed: int) -> None:
        """Sets the seed of orders that were not drawn yet."""
        self._generator.manual_seed(seed)

    def same_document_partners(self) -> float:
        """Returns how many rows of its own document a row meets in a batch, on average."""
        held = self._document[self._order[self._cursor :].cpu()]
        return expected_partners(held, min(self.slots.batch, max(self.n, 1)))

    def refill(self) -> None:
        """Reads until the free slots are full, and draws a new order."""
        is_first = self._storage is None
        self._storage = self._storage or self._allocate()
        if self._reached is None:
            order, free = self._order[self._cursor :], torch.cat([self._order[: self._cursor], self._spare])
            reached = self.reader.state_dict()
            self._order, self._cursor, self._spare, self._reached = order, 0, free, reached
        else:
            self.reader.load_state_dict(self._reached)
        self.reader.release(self._reached)
        n_free = len(self._spare) - self._n_filled
        n_wanted = n_free if self._expected is None else min(n_free, self._expected)
        # the first time is the long one
        with Progress("filling the buffer", n_wanted, "tokens") if is_first else contextlib.nullcontext() as progress:
            ended = self._fill(self._storage, progress)
        held = torch.cat([self._order, self._spare[: self._n_filled]])
        generator = torch.Generator()
        generator.set_state(self._generator.get_state())
        order = held[torch.randperm(len(held), generator=generator).to(self.slots.device)]
        done = (order, self._spare[self._n_filled :], generator, ended, 0, None)
        self._order, self._spare, self._generator, self._ended, self._n_filled, self._reached = done
        if is_first:
            self._said = self.reader.describe_dropped()
            logger.info("%s.", self._said)
            met = "Of a batch of %d rows, %.1f are of one row's own document, on average; a larger n_ctxs lowers it."
            logger.debug(met, self.slots.batch, self.same_document_partners())

    def finish_refill(self) -> None:
        """Fills the slots, if an interrupt or an error has ended a refill."""
        if self._reached is not None:
            self.refill()

    def close(self) -> None:
        """Frees the memory of served rows, unless most wait, and ends the thread of a reader."""
        self.reader.close()
        if self._storage is not None:
            counts = self.reader.describe_dropped()
            if counts != self._said:  # with little text, all was read at first
                logger.info("%s: %s.", self.reader.name, counts)
                self._said = counts
            self._compact(self._storage)

    def state_dict(self) -> dict[str, Any]:
        """Returns what determines the next batches: unserved rows, shuffle, place in the text."""
        self.finish_refill()
        slots, held = self._order[self._cursor :], self._storage or {}
        return {
            "size": self.slots.n,
            "parts": [{str(site): x for site, x in part.items()} for part in self._parts],
            "rows": {} if self._origins else {str(site): storage.snapshot(slots) for site, storage in held.items()},
            "origins": self._origins.state_dict(slots.cpu()) if self._origins and held else None,
            "document": self._document[slots.cpu()],
            "ended": self._ended,
            "generator": self._generator.get_state(),
            "reader": copy.deepcopy(self.reader.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from the state of an equal one.

        Raises:
            ConfigError: It has other sites or another size.
        """
        rows, size, sites = state["rows"], state.get("size"), [str(site) for site in self.slots.widths]
        if (rows and list(rows) != sites) or size != self.slots.n:
            raise ConfigError(
                f"The state is of a buffer of {size} rows at {', '.join(rows) or 'no site'}; this buffer has "
                f"{self.slots.n} at {', '.join(sites)}. Build it with the same arguments."
            )
        self._clear()
        self._expected, origins = None, state["origins"]
        if rows and self._origins:
            raise ConfigError("The state holds its rows, and retrace=True wants to read them again. Set retrace=False.")
        self._storage = self._allocate() if rows or origins else None
        if self._storage and origins:
            read_again(self.reader, origins, self._storage)
            if self._origins:
                self._origins.load_state_dict(origins)
        for site, storage in self._storage.items() if self._storage and rows else ():
            storage.load(rows[str(site)])
        # the rows fill the first slots, in the order in which they are served
        n = len(state["document"])
        self._order, self._spare = self._spare[:n], self._spare[n:]
        self._document[:n] = state["document"]
        self._parts = [{Site.parse(site): x for site, x in part.items()} for part in state.get("parts", ())]
        self._ended, self._reached = state["ended"], None
        self._generator.set_state(state["generator"].cpu())
        self.reader.load_state_dict({**copy.deepcopy(state["reader"]), "expected": None})

    def _clear(self) -> None:
        self._storage: dict[Site, RowStorage] | None = None
        self._spare = torch.arange(self.slots.n, device=self.slots.device)  # slots without a row
        self._order = self._spare[:0]  # slots with a row, in the order in which they are served
        self._cursor = 0  # slots of the order that were served
        self._n_filled = 0  # during a refill: slots of `_spare` whose rows are not in the order yet
        self._parts: list[dict[Site, Tensor]] = []  # of a batch that is not complete

    def _compact(self, storages: Mapping[Site, RowStorage]) -> None:
        """Moves the rows that are held to the first slots, and gives the memory of others back."""
        n, filled = self.n, self._spare[: self._n_filled]
        held = torch.cat([self._order[self._cursor :], filled])
        if 2 * len(held) > max(len(storage.rows) for storage in storages.values()):
            return
        kept = {site: storage.compacted(held) for site, storage in storages.items()}
        slots = torch.arange(self.slots.n, device=self.slots.device)
        document, origins = self._document.clone(), self._origins and self._origins.compacted(held.cpu())
        document[: len(held)] = self._document[held.cpu()]
        done = (kept if len(held) else None, slots[:n], 0, slots[n:], document, origins)
        self._storage, self._order, self._cursor, self._spare, self._document, self._origins = done

    def _fill(self, storages: Mapping[Site, RowStorage], progress: Progress | None) -> bool:
        """Writes rows into the free slots; returns whether the text has ended."""
        while len(self._spare) - self._n_filled >= self.slots.at_once and not self._has_enough():
            rows = self.reader.read(self.slots.n_contexts)
            if rows is None:
                return True
            slots = self._spare[self._n_filled : self._n_filled + rows.n]
            for site, storage in storages.items():
                storage.write(slots, rows.activations[site])
            self._document[slots.cpu()] = rows.document
            if self._origins:
                self._origins.add(slots.cpu(), self._reached or {}, rows)
            n_filled, reached = self._n_filled + rows.n, self.reader.state_dict()
            self._n_filled, self._reached = n_filled, reached
            self.reader.release(reached)
            if progress:
                progress.advance(rows.n)
        return False

    def _n_in_parts(self) -> int:
        return sum(map(_length, self._parts))

    def _has_enough(self) -> bool:
        """Returns whether all rows that are expected to be served are held."""
        return self._expected is not None and self.n + self._n_filled + self._n_in_parts() >= self._expected

    def _read(self, slots: Tensor) -> dict[Site, Tensor]:
        assert self._storage is not None
        return {site: storage.read(slots) for site, storage in self._storage.items()}

    def _allocate(self) -> dict[Site, RowStorage]:
        """Logs the memory, before the first read, and allocates it: of no more than a run fills."""
        slots = self.slots
        size = slots_used(slots.n, self._expected, slots.at_once)
        in_flight = slots.at_once * sum(slots.widths.values()) * slots.read_dtype.itemsize
        logger.info(
            "The buffer takes %s on %s: %s at %s, %s. A forward pass adds %s of activations on %s.",
            as_bytes(slots.n_bytes * size // slots.n), slots.device, counted(size, "row"),
            counted(len(slots.widths), "site"), slots.dtype, as_bytes(in_flight), slots.read_device,
        )  # fmt: skip
        kinds = (slots.dtype, slots.device, slots.read_dtype)
        return {site: RowStorage(slots.n, w, *kinds, at_first=size) for site, w in slots.widths.items()}


def _length(rows: Mapping[Site, Tensor]) -> int:
    return len(next(iter(rows.values())))
