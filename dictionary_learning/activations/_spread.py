"""Streams of activations over several ranks: each has a part of every step's tokens.

The data are divided into as many shares as the run has ranks when it starts. Text is divided by
documents, and each share has a buffer of its own; batches that come from elsewhere are dealt out,
one to each share. A rank has one share, or several where a run is resumed on fewer ranks: so the
tokens of a step are the same on any number of ranks.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from dictionary_learning.activations._stream import ActivationBatch, ActivationStream
from dictionary_learning.errors import ConfigError
from dictionary_learning.parallel import Placement, Ranks, Waits
from dictionary_learning.sites import Site

logger = logging.getLogger(__name__)


class _Parts(Protocol):
    """What this rank has of each step."""

    widths: dict[Site, int]

    def read(self) -> ActivationBatch | None:
        """Returns the rows of this rank's shares in the next step; None if there are none."""

    def sample(self, n: int) -> dict[Site, Tensor]:
        """Returns about n rows of all shares, which are served later."""
        ...

    def expect(self, n_steps: int | None) -> None:
        """Says how many steps follow."""

    def state_dicts(self) -> dict[int, Any]:
        """Returns the state of each share of this rank."""
        ...

    def load_state_dicts(self, states: Mapping[int, Any]) -> None:
        """Continues from the states of these shares."""


class SpreadStream:
    """The rows that this rank trains on, of data that are divided among ranks.

    All ranks ask for each batch together. Where some have fewer rows than others, as when the data
    of a rank have ended, the rows are dealt out evenly, so none is lost and no rank waits forever.
    Contexts stay with their rank; the stream of these ends when the first of the ranks has no more.

    Args:
        data: What each rank would train on alone, given to all.
        n_shares: Shares of the data.
        world: All ranks.
        split_by_head: As of `ActivationStream`.

    Raises:
        ConfigError: The shares cannot be divided among the ranks.
    """

    def __init__(self, data: Any, n_shares: int, world: Ranks, *, split_by_head: bool = False):
        if n_shares % world.size:
            raise ConfigError(
                f"The run has {n_shares} shares of its data, which {world.size} ranks cannot divide. Start as many "
                f"ranks as divide {n_shares}."
            )
        each = n_shares // world.size
        self.data, self.world, self.n_shares = data, world, n_shares
        self.own = range(world.rank * each, (world.rank + 1) * each)
        """The shares of this rank."""
        self.placement = Placement(world, data=world)
        is_text = hasattr(data, "share")
        self._parts: _Parts = (
            _TextShares(data, self.own, n_shares, world, split_by_head)
            if is_text
            else _DealtBatches(data, self.own, n_shares, split_by_head)
        )
        self.widths = self._parts.widths
        self.n_tokens = 0
        """Rows of the last batch, on all ranks together."""
        self._empty: dict[Site, Tensor] = {}
        self._waits = Waits(world)

    @property
    def n_heads(self) -> int | None:
        """Number of attention heads, where tensors hold them separately."""
        return getattr(self._parts, "n_heads", None)

    def __iter__(self) -> Iterator[ActivationBatch]:
        return self

    def __next__(self) -> ActivationBatch:
        self._waits.step()
        batch = self._parts.read()
        told = self.world.tell([0 if batch is None else _n_rows(batch), bool(batch or self._empty)])
        counts = [n for n, _ in told]
        self.n_tokens = sum(counts)
        # a step of fewer rows than ranks would leave a rank without any
        if self.n_tokens < self.world.size:
            raise StopIteration
        if len(set(counts)) > 1:
            has_contexts = bool(self.world.total(int(_is_contexts(batch))))
            if has_contexts and not all(counts):
                raise StopIteration
            if not has_contexts:
                if not all(has_seen for _, has_seen in told):
                    self._learn(batch, counts.index(max(counts)))
                batch = self._dealt_out(self._empty if batch is None else batch)
        assert batch is not None
        self._empty = {site: x[:0] for site, x in batch.items()}
        others = self.placement.same_tokens
        return batch if others.size == 1 else {site: others.gather(x) for site, x in batch.items()}

    def sample(self, n: int) -> dict[Site, Tensor]:
        """Returns about n rows of each site, the same on all ranks."""
        return self._parts.sample(n)

    def expect(self, n_batches: int | None) -> None:
        """Says how many steps follow, to data that read no more than needed."""
        self._parts.expect(n_batches)

    def state_dicts(self) -> dict[int, Any]:
        """Returns the state of each share of this rank."""
        return self._parts.state_dicts()

    def load_state_dicts(self, states: Mapping[int, Any]) -> None:
        """Continues from the states of this rank's shares."""
        self._parts.load_state_dicts(states)

    def _learn(self, batch: ActivationBatch | None, source: int) -> None:
        """Learns from a rank what rows are like, where this one has had none."""
        rows = {} if batch is None else {site: x[:0].cpu() for site, x in batch.items()}
        shared = self.world.share(rows, source)
        device = getattr(self.data, "device", "cpu")
        self._empty = self._empty or {site: x.to(device) for site, x in shared.items()}

    def _dealt_out(self, batch: ActivationBatch) -> dict[Site, Tensor]:
        world = self.world
        return {site: world.gather(x).tensor_split(world.size)[world.rank] for site, x in batch.items()}


Stream = ActivationStream | SpreadStream
"""Where a run gets its activations."""


class _TextShares:
    """Shares of data that divide themselves: each is a stream of its own."""

    def __init__(self, data: Any, own: range, n_shares: int, world: Ranks, split_by_head: bool):
        self._world, self._whole = world, data
        self.streams = {n: ActivationStream(data.share(n, n_shares), split_by_head=split_by_head) for n in own}
        first = self.streams[own[0]]
        self.widths, self.n_heads = first.widths, first.n_heads
        self._per_share, self._has_limits = n_shares, False

    def read(self) -> ActivationBatch | None:
        batches = [batch for stream in self.streams.values() if (batch := next(stream, None)) is not None]
        return _joined(batches)

    def sample(self, n: int) -> dict[Site, Tensor]:
        self._agree_on_limits()
        parts = [stream.sample(-(-n // self._per_share)) for stream in self.streams.values()]
        return {site: self._world.gather(torch.cat([part[site] for part in parts])) for site in self.widths}

    def expect(self, n_steps: int | None) -> None:
        for stream in self.streams.values():
            stream.expect(n_steps)

    def state_dicts(self) -> dict[int, Any]:
        return {number: stream.state_dict() for number, stream in self.streams.items()}

    def load_state_dicts(self, states: Mapping[int, Any]) -> None:
        for number, stream in self.streams.items():
            stream.load_state_dict(states[number])
        limits = getattr(self.streams[min(self.streams)].data, "norm_limits", None)
        if limits and hasattr(self._whole, "set_norm_limits"):
            self._whole.set_norm_limits({str(site): limit for site, limit in limits.items()})
        self._has_limits = True

    def _agree_on_limits(self) -> None:
        """Excludes tokens by one norm on all ranks: that of the first share's first contexts."""
        find = getattr(self.streams[min(self.streams)].data, "find_norm_limits", None)
        if self._has_limits or find is None:
            return
        limits = self._world.share(find() if self._world.is_first else None)
        for data in (self._whole, *(stream.data for stream in self.streams.values())) if limits else ():
            data.set_norm_limits(limits)
        self._has_limits = True


class _DealtBatches:
    """Shares of data that every rank reads in whole: of as many batches as shares, each has one."""

    def __init__(self, data: Any, own: range, n_shares: int, split_by_head: bool):
        self._stream = ActivationStream(data, split_by_head=split_by_head)
        self._own, self._n_shares = own, n_shares
        self.widths, self.n_heads = self._stream.widths, self._stream.n_heads

    def read(self) -> ActivationBatch | None:
        batches = [next(self._stream, None) for _ in range(self._n_shares)]
        return _joined([batch for n in self._own if (batch := batches[n]) is not None])

    def sample(self, n: int) -> dict[Site, Tensor]:
        return self._stream.sample(n)

    def expect(self, n_steps: int | None) -> None:
        self._stream.expect(None if n_steps is None else n_steps * self._n_shares)

    def state_dicts(self) -> dict[int, Any]:
        return dict.fromkeys(self._own, self._stream.state_dict())

    def load_state_dicts(self, states: Mapping[int, Any]) -> None:
        self._stream.load_state_dict(states[self._own[0]])


def _joined(batches: list[Any]) -> Any:  # batches of one share, to one of all of them
    if len(batches) < 2:
        return batches[0] if batches else None
    if any(map(_is_contexts, batches)):
        raise ConfigError(
            "Contexts cannot be joined with those of another share. Resume on as many ranks as the run had at first."
        )
    return {site: torch.cat([batch[site] for batch in batches]) for site in batches[0]}


def _is_contexts(batch: ActivationBatch | None) -> bool:
    return getattr(batch, "lengths", None) is not None


def _n_rows(batch: ActivationBatch) -> int:
    return len(next(iter(batch.values())))
