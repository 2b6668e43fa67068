"""Writes a cache shard by shard; the rows of a shard are shuffled together.

A shard holds the rows of the next contexts, in an order drawn from the seed and the shard's number.
Only the position in the text is carried from one shard to the next, and it is stored in the index.
A writer that is killed continues after the last shard in the index and writes the same bytes.
"""

import dataclasses
import logging
import time
from typing import Any

import torch
from torch import Tensor

from dictionary_learning._plain import as_bytes, counted
from dictionary_learning._progress import Progress
from dictionary_learning.activations._prefetch import ahead
from dictionary_learning.activations._reader import RowReader, Rows, RowSource, by_name
from dictionary_learning.activations.cache._checks import bytes_of_a_row, check_same
from dictionary_learning.activations.cache._index import (
    INDEX,
    PARTS,
    Index,
    Shard,
    check_file,
    inputs_fingerprint,
    load_index,
)
from dictionary_learning.activations.cache._shards import generator_of, tensors_of, write_shard
from dictionary_learning.activations.cache._store import Store
from dictionary_learning.errors import DataError
from dictionary_learning.parallel import Ranks, on_each

logger = logging.getLogger(__name__)


def opened(store: Store, settings: dict[str, Any], reader: RowReader) -> Index:
    """Returns the index of a cache that is new, or was begun, and moves the reader to its end.

    Raises:
        DataError: the cache there has other settings, text or weights.
    """
    index = Index(settings=settings, state={})
    exists = store.exists(INDEX)
    if exists:
        index = load_index(store)
    settings["text_fingerprint"] = inputs_fingerprint(reader.peek(settings["refresh_batch_size"]))
    if exists:
        check_same(store, index, settings)
    if index.state:
        reader.load_state_dict(index.state)
        logger.info("%s is continued after %s rows.", store.path, f"{index.n_rows:,}")
    return index


def written(
    store: Store, index: Index, reader: RowReader, dtype: torch.dtype, prefetch: int | None, world: Ranks
) -> Index:
    """Writes what an opened cache lacks, and returns its index."""
    source = ahead(reader, index.settings["refresh_batch_size"], prefetch)
    try:
        return Writer(store, index, source, dtype).run(world)
    finally:
        source.close()


class Writer:
    """Writes shards until the rows are enough, or the data ends."""

    def __init__(self, store: Store, index: Index, source: RowSource, dtype: torch.dtype):
        self.store, self.index, self.source, self.dtype, self.settings = store, index, source, dtype, index.settings
        self._started, self._n_before, self._is_estimated = time.monotonic(), index.n_rows, False

    def run(self, world: Ranks) -> Index:
        """Writes all that is missing; ranks go from shard to shard together."""
        with Progress("writing the cache", self._missing, "rows") as progress:
            # so the failure of one ends all of them
            while not all(on_each(world, lambda: self._advance(progress))):
                pass
        size = as_bytes(self.index.n_bytes)
        logger.info("%s: %s. %s.", self.store.path, size, self.source.describe_dropped())
        return self.index

    def _advance(self, progress: Progress) -> bool:
        """Writes the next shard, if one is missing, and returns whether that was all."""
        if not self.index.is_complete:
            rows, has_ended = self._next_rows(progress)
            shards = self.index.shards if rows is None else (*self.index.shards, self._write(rows))
            n_rows = sum(shard.n_rows for shard in shards)
            is_complete = has_ended or n_rows == self.settings["n_tokens"]
            if self.index.shards and not self.store.exists(INDEX):
                raise DataError(f"'{self.store.path}' was removed while it was written. Write the cache again.")
            self.index = dataclasses.replace(
                self.index,
                shards=shards,
                state=None if is_complete else self.source.state_dict(),
                filter={**self.settings["rule"], "norm_limits": by_name(self.source.norm_limits)},
                dropped={"read": self.source.n_tokens_read, **self.source.dropped},
            )
            for shard in shards if is_complete else ():
                check_file(self.store, shard)
            self.index.save(self.store)
            rate = (n_rows - self._n_before) / max(time.monotonic() - self._started, 1e-9)
            logger.info("%s rows in %d shards, %.0f a second.", f"{n_rows:,}", len(shards), rate)
        return self.index.is_complete

    @property
    def _missing(self) -> int | None:
        """Number of rows that are still to be written; None for all of the data."""
        wanted = self.settings["n_tokens"]
        return None if wanted is None else wanted - self.index.n_rows

    def _next_rows(self, progress: Progress) -> tuple[dict[str, Tensor] | None, bool]:
        """Returns the rows of the next shard, in the order read, and whether the data has ended."""
        size, missing = self.settings["shard_size"], self._missing
        wanted = size if missing is None else min(size, missing)
        parts: list[dict[str, Tensor]] = []
        n, has_ended = 0, False
        while n < wanted and not has_ended:
            start = time.monotonic()
            rows = self.source.read(self.settings["refresh_batch_size"])
            has_ended = rows is None
            if rows is not None:
                self._estimate(rows, time.monotonic() - start)
                parts.append(tensors_of(rows, self.dtype))
                n += rows.n
                progress.advance(rows.n)
        if not n:
            return None, has_ended
        # the last shard may be cut within a forward pass
        return {name: torch.cat([part[name] for part in parts])[:missing] for name in parts[0]}, has_ended

    def _write(self, rows: dict[str, Tensor]) -> Shard:
        """Shuffles rows and writes them as the next shard."""
        number, n_parts = len(self.index.shards), self.settings.get(PARTS, 1)
        drawn = generator_of(self.settings["seed"], number * n_parts + self.settings.get("part", 0))
        order = torch.randperm(len(rows["token"]), generator=drawn)
        suffix = ".safetensors.zst" if self.settings["compression"] else ".safetensors"
        shuffled = {name: tensor[order.to(tensor.device)].cpu() for name, tensor in rows.items()}
        return write_shard(self.store, f"shard_{number:05d}{suffix}", shuffled, self.settings["compression"])

    def _estimate(self, rows: Rows, seconds: float) -> None:
        """Logs the expected size and duration after the first forward pass."""
        if self._is_estimated or not rows.n:
            return
        self._is_estimated = True
        n = 1_000_000 if self._missing is None else self._missing
        logger.info(
            "%s at %s take %s and about %.0f min (a forward pass took %.1f s, for %s).",
            counted(n, "row"), counted(len(rows.activations), "site"),
            as_bytes(n * bytes_of_a_row(self.settings, self.dtype)),
            n / rows.n * seconds / 60, seconds, counted(rows.n, "row"),
        )  # fmt: skip
