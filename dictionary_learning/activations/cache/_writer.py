"""Writes a cache shard by shard; the rows of a shard are shuffled together.

A shard holds the rows of the next contexts, in an order drawn from the seed and the shard's number.
Only the position in the text is carried from one shard to the next, and it is stored in the index.
A writer that is killed continues after the last shard in the index and writes the same bytes.
"""

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._plain import as_bytes, to_plain
from dictionary_learning._progress import Progress
from dictionary_learning._types import ModelLike, SubmodulesLike, TextLike
from dictionary_learning.activations._prefetch import ahead
from dictionary_learning.activations._reader import (
    ReadingConfig,
    RowReader,
    Rows,
    RowSource,
    by_name,
    row_reader,
)
from dictionary_learning.activations._storage import storage_dtype
from dictionary_learning.activations.cache._index import (
    INDEX,
    Index,
    Shard,
    check_file,
    differences,
    inputs_fingerprint,
    load_index,
    model_fingerprint,
)
from dictionary_learning.activations.cache._shards import ORIGIN, generator_of, tensors_of, write_shard
from dictionary_learning.activations.cache._store import Store
from dictionary_learning.errors import DataError, SiteError
from dictionary_learning.parallel import refuse_several

logger = logging.getLogger(__name__)

_ORIGIN_BYTES = 4  # bytes of a token, a document or a position
_ROOM = 1.02  # free space needed for each byte of rows: headers and the index come on top


@checked(wraps=DataError)
def write_cache(
    path: str | os.PathLike[str],
    data: TextLike,
    model: ModelLike,
    submodule: SubmodulesLike,
    *,
    n_tokens: int | None = None,
    refresh_batch_size: int = 16,
    shard_size: int = 65_536,
    dtype: torch.dtype | str | None = None,
    compression: Literal["zstd"] | None = None,
    seed: int = 0,
    prefetch: int | None = None,
    run_cfg: Mapping[str, Any] | None = None,
    **reading: Any,
) -> Index:
    """Writes the activations of a model at one or several sites; continues an incomplete cache.

    The first contexts and some of the weights are compared with those of an existing cache.

    Args:
        path: a local folder, or an address that fsspec knows, such as `s3://bucket/folder`.
        data: the text, or a stream of contexts (see `ActivationBuffer`).
        model: the model, or its name.
        submodule: the sites; one forward pass serves all.
        n_tokens: rows to write; by default all of the data.
        refresh_batch_size: contexts in a forward pass.
        shard_size: rows in a file, or a few more. They are held in memory and shuffled together.
        dtype: float32, float16, bfloat16 or int8 (see `RowStorage`); by default the model's.
        compression: `zstd` compresses each shard, which then cannot be mapped into memory.
        seed: seed of the shuffle.
        prefetch: forward passes made ahead while a shard is written (see `ActivationBuffer`).
        run_cfg: plain data to store in the index, under "run".
        reading: fields of `ReadingConfig`: `io`, `ctx_len`, `remove_bos`, `add_special_tokens`,
            `max_activation_norm_multiple`, `pack`, `seqpos_slice`, `text_column`,
            `exclude_tokens`.

    Returns:
        The index of the complete cache.

    Raises:
        DataError: the disk is too small, no token counts, or another cache is there.
        ConfigError: an argument cannot be used, or several processes write.
    """
    refuse_several("write_cache", "Write the cache first, without torchrun; any number of processes reads it.")
    dtype = None if dtype is None else storage_dtype(dtype)
    reader = row_reader(data, model, submodule, ReadingConfig.from_dict(reading))
    stored = storage_dtype(dtype or reader.model.dtype)
    settings: dict[str, Any] = {
        **_reader_settings(reader),
        "dtype": str(stored).removeprefix("torch."),
        "compression": compression,
        "seed": seed,
        "n_tokens": n_tokens,
        "refresh_batch_size": refresh_batch_size,
        "shard_size": shard_size,
    }
    if run_cfg:
        settings["run"] = to_plain(run_cfg, "run_cfg")
    store = Store(path)
    index = Index(settings=settings, state={})
    exists = store.exists(INDEX)
    if exists:
        index = load_index(store)
    # a source that can be read only once cannot go back, as continuing needs
    if not index.state or getattr(reader.stream.source, "repeatable", True):
        settings["text_fingerprint"] = inputs_fingerprint(reader.peek(refresh_batch_size))
    if exists:
        _check_same(store, index, settings)
    if index.is_complete:
        logger.info("%s is complete: %s rows.", store.path, f"{index.n_rows:,}")
        return index
    if index.state:
        reader.load_state_dict(index.state)
        logger.info("%s is continued after %s rows.", store.path, f"{index.n_rows:,}")
    _check_disk(store, index, stored)
    source = ahead(reader, refresh_batch_size, prefetch)
    try:
        return _Writer(store, index, source, stored).run()
    finally:
        source.close()


class _Writer:
    """Writes shards until the rows are enough, or the data ends."""

    def __init__(self, store: Store, index: Index, source: RowSource, dtype: torch.dtype):
        self.store, self.index, self.source, self.dtype, self.settings = store, index, source, dtype, index.settings
        self._started, self._n_before, self._is_estimated = time.monotonic(), index.n_rows, False

    def run(self) -> Index:
        with Progress("writing the cache", self._missing, "rows") as progress:
            return self._run(progress)

    def _run(self, progress: Progress) -> Index:
        while not self.index.is_complete:
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
        size = as_bytes(self.index.n_bytes)
        logger.info("%s: %s. %s.", self.store.path, size, self.source.describe_dropped())
        return self.index

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
        number = len(self.index.shards)
        order = torch.randperm(len(rows["token"]), generator=generator_of(self.settings["seed"], number))
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
            "%s rows at %d sites take %s and about %.0f min (a forward pass took %.1f s, for %d rows).",
            f"{n:,}", len(rows.activations), as_bytes(n * bytes_of_a_row(self.settings, self.dtype)),
            n / rows.n * seconds / 60, seconds, rows.n,
        )  # fmt: skip


def bytes_of_a_row(settings: dict[str, Any], dtype: torch.dtype) -> int:
    """Returns the uncompressed size of a row at all sites, with its origin."""
    widths = settings["sites"].values()
    scales = 4 * len(widths) if dtype is torch.int8 else 0
    return sum(widths) * dtype.itemsize + scales + len(ORIGIN) * _ORIGIN_BYTES


def _reader_settings(reader: RowReader) -> dict[str, Any]:
    """Returns the settings of text, model and filter that determine the rows."""
    tokens, tokenizer = reader.stream, getattr(reader.model, "tokenizer", None)
    heads: dict[str, int] = {}
    for site in reader.sites:
        # most sites hold no heads, and a `ModelSet` has no config
        with contextlib.suppress(SiteError, AttributeError):
            heads[str(site)] = reader.model.n_heads(site)
    return {
        "model": reader.model.describe(),
        "model_fingerprint": model_fingerprint(reader.model),
        "sites": {str(site): width for site, width in reader.model.widths(reader.sites).items()},
        "n_heads": heads,
        "source": reader.name,
        "tokenizer": getattr(tokenizer, "name_or_path", None) or (type(tokenizer).__name__ if tokenizer else None),
        "ctx_len": tokens.ctx_len,
        "pack": tokens.pack,
        "add_special_tokens": getattr(tokens, "add_special_tokens", False),
        "rule": reader.filter.to_dict(),
    }


def _check_same(store: Store, index: Index, settings: dict[str, Any]) -> None:
    """Checks that a cache was started with these settings, and that its shards are there."""
    if differ := differences(settings, index.settings):
        raise DataError(
            f"'{store.path}' holds a cache with other settings ({'; '.join(differ)}). Use another folder, or those "
            "settings."
        )
    for shard in index.shards:
        check_file(store, shard)
    store.remove_unfinished()


def _check_disk(store: Store, index: Index, dtype: torch.dtype) -> None:
    wanted, free = index.settings["n_tokens"], store.free()
    if wanted is None or free is None or index.settings["compression"]:
        return
    needed = (wanted - index.n_rows) * bytes_of_a_row(index.settings, dtype)
    if needed * _ROOM > free:
        raise DataError(
            f"{wanted - index.n_rows:,} rows take {as_bytes(needed)}, and '{store.path}' has {as_bytes(free)} left. "
            "Write fewer tokens, store them as int8, compress them, or write elsewhere."
        )
