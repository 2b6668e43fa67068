"""Writing a cache: shard after shard, each of rows that were shuffled together.

A shard's rows are those of the next contexts of the text, in an order drawn by the seed and the shard's number. Nothing else is kept
from one shard to the next but the position in the text, which stands in the index. Whoever is killed goes on after the last shard
that the index knows, and writes the same bytes.
"""

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dictionary_learning.activations.cache.index import INDEX, Index, Shard, differences, load_index
from dictionary_learning.activations.cache.shards import PLACES, generator_of, tensors_of, write_shard
from dictionary_learning.activations.cache.store import Store
from dictionary_learning.activations.reader import RowReader, Rows, RowSource, by_name
from dictionary_learning.activations.reading import ahead, row_reader
from dictionary_learning.activations.storage import storage_dtype
from dictionary_learning.errors import ConfigError, DataError, SiteError

logger = logging.getLogger(__name__)

_BYTES_OF_A_PLACE = 4
_ROOM = 1.02
"""How much more must be free than the cache will take: headers, and the index."""


def write_cache(
    path: str | os.PathLike,
    data: Any,
    model: Any,
    submodule: Any,
    *,
    n_tokens: int | None = None,
    refresh_batch_size: int = 16,
    shard_size: int = 65_536,
    dtype: torch.dtype | str | None = None,
    compression: str | None = None,
    seed: int = 0,
    prefetch: int | None = None,
    run_cfg: Mapping[str, Any] | None = None,
    **reading: Any,
) -> Index:
    """Writes the activations of a model at one or several sites; goes on where a writer before it was stopped.

    Args:
        path: a local folder, or an address that fsspec knows, as `s3://bucket/folder`.
        data: the text, or a stream of contexts (see `ActivationBuffer`).
        model: the model, or its name.
        submodule: the sites: all are taken from one forward pass.
        n_tokens: rows to write; by default to the end of the data.
        refresh_batch_size: contexts in a forward pass.
        shard_size: rows in a file, or a few more. They are held in memory, and shuffled together.
        dtype: what rows are kept as: the model's type, or float32, float16, bfloat16, int8 (see `RowStorage`).
        compression: `zstd` compresses each shard, which then cannot be mapped into memory.
        seed: of the shuffle.
        prefetch: forward passes made ahead while a shard is written (see `ActivationBuffer`).
        run_cfg: anything that should stand in the index, under "run".
        reading: the other arguments of `ActivationBuffer` that say which rows there are: `io`, `ctx_len`, `remove_bos`,
            `add_special_tokens`, `max_activation_norm_multiple`, `pack`, `seqpos_slice`, `text_column`.

    Returns:
        The index of the whole cache.

    Raises:
        DataError: the disk is too small, the data holds nothing that counts, or another cache is there already.
        ConfigError: an argument cannot be used.
    """
    if compression not in (None, "zstd"):
        raise ConfigError(f"Got compression={compression!r}; it is 'zstd' or None.")
    if min(shard_size, refresh_batch_size) < 1 or (n_tokens is not None and n_tokens < 1):
        raise ConfigError(
            f"Got n_tokens={n_tokens}, shard_size={shard_size} and refresh_batch_size={refresh_batch_size}; each must be at least 1."
        )
    reader = row_reader(data, model, submodule, **reading)
    kept = storage_dtype(dtype or reader.model.dtype)
    settings = _settings(reader, kept, compression, seed, n_tokens, refresh_batch_size, shard_size)
    if run_cfg:
        settings["run"] = dict(run_cfg)
    store = Store(path)
    index = _begun(store, settings)
    if index.is_complete:
        logger.info("%s is complete: %s rows.", store.path, f"{index.n_rows:,}")
        return index
    if index.state:
        reader.load_state_dict(index.state)
        logger.info("%s is taken up again after %s rows.", store.path, f"{index.n_rows:,}")
    _check_disk(store, index, kept)
    source = ahead(reader, refresh_batch_size, prefetch)
    try:
        return _Writer(store, index, source, kept).run()
    finally:
        source.close()


class _Writer:
    """Writes shards until the rows are enough, or the data ends."""

    def __init__(self, store: Store, index: Index, source: RowSource, dtype: torch.dtype):
        self.store, self.index, self.source, self.dtype = store, index, source, dtype
        self.settings = index.settings
        self._began = time.monotonic()
        self._before = index.n_rows
        self._is_estimated = False

    def run(self) -> Index:
        while not self.index.is_complete:
            rows, has_ended = self._next_rows()
            if rows is None and not self.index.shards:
                raise DataError(
                    f"{self.source.name} holds no token that counts: {self.source.describe_dropped()}. Give more text."
                )
            shards = self.index.shards if rows is None else (*self.index.shards, self._write(rows))
            n_rows = sum(shard.n_rows for shard in shards)
            self.index = dataclasses.replace(
                self.index,
                shards=shards,
                state=None if has_ended or n_rows == self._wanted else self.source.state_dict(),
                filter={**self.settings["rule"], "norm_limits": by_name(self.source.norm_limits)},
                dropped={"read": self.source.n_tokens_read, **self.source.dropped},
            )
            self.index.save(self.store)
            rate = (n_rows - self._before) / max(time.monotonic() - self._began, 1e-9)
            logger.info("%s rows in %d shards, %.0f a second.", f"{n_rows:,}", len(shards), rate)
        size = self.index.n_bytes / 1e9
        logger.info("%s: %.2f GB. %s.", self.store.path, size, self.source.describe_dropped())
        return self.index

    @property
    def _wanted(self) -> int | None:
        return self.settings["n_tokens"]

    def _next_rows(self) -> tuple[dict[str, Tensor] | None, bool]:
        """Returns the rows of the next shard, in the order read, and whether the data has ended."""
        limit = self.settings["shard_size"]
        left = None if self._wanted is None else self._wanted - self.index.n_rows
        parts: list[dict[str, Tensor]] = []
        n = 0
        while n < (limit if left is None else min(limit, left)):
            start = time.monotonic()
            rows = self.source.read(self.settings["refresh_batch_size"])
            if rows is None:
                return _joined(parts, left), True
            self._estimate(rows, time.monotonic() - start)
            parts.append(tensors_of(rows, self.dtype))
            n += rows.n
        return _joined(parts, left), False

    def _write(self, rows: dict[str, Tensor]) -> Shard:
        """Shuffles rows and writes them as the next shard."""
        number = len(self.index.shards)
        generator = generator_of(self.settings["seed"], number)
        order = torch.randperm(len(rows["token"]), generator=generator)
        suffix = ".safetensors.zst" if self.settings["compression"] else ".safetensors"
        shuffled = {name: tensor[order.to(tensor.device)].cpu() for name, tensor in rows.items()}
        return write_shard(self.store, f"shard_{number:05d}{suffix}", shuffled, self.settings["compression"])

    def _estimate(self, rows: Rows, seconds: float) -> None:
        """Says after the first forward pass, before anything is written, how large the cache will be and how long it will take."""
        if self._is_estimated or not rows.n:
            return
        self._is_estimated = True
        n = 1_000_000 if self._wanted is None else self._wanted - self.index.n_rows
        logger.info(
            "%s rows at %d sites take %.2f GB and about %.0f min (a forward pass took %.1f s, for %d rows).",
            f"{n:,}", len(rows.activations), n * bytes_of_a_row(self.settings, self.dtype) / 1e9,
            n / rows.n * seconds / 60, seconds, rows.n,
        )  # fmt: skip


def bytes_of_a_row(settings: dict[str, Any], dtype: torch.dtype) -> int:
    """Returns what a row takes at all sites, uncompressed, with where it comes from."""
    widths = settings["sites"].values()
    scales = 4 * len(widths) if dtype is torch.int8 else 0
    return sum(widths) * dtype.itemsize + scales + len(PLACES) * _BYTES_OF_A_PLACE


def _settings(
    reader: RowReader,
    dtype: torch.dtype,
    compression: str | None,
    seed: int,
    n_tokens: int | None,
    refresh_batch_size: int,
    shard_size: int,
) -> dict[str, Any]:
    """Returns all that decides which rows there are, in which order and form."""
    tokens, tokenizer = reader.stream, getattr(reader.model, "tokenizer", None)
    return {
        "model": reader.model.describe(),
        "sites": {str(site): width for site, width in reader.model.widths(reader.sites).items()},
        "n_heads": _heads(reader),
        "dtype": str(dtype).removeprefix("torch."),
        "compression": compression,
        "source": reader.name,
        "tokenizer": getattr(tokenizer, "name_or_path", None) or (type(tokenizer).__name__ if tokenizer else None),
        "ctx_len": tokens.ctx_len,
        "pack": tokens.pack,
        "add_special_tokens": getattr(tokens, "add_special_tokens", False),
        "rule": reader.filter.to_dict(),
        "seed": seed,
        "n_tokens": n_tokens,
        "refresh_batch_size": refresh_batch_size,
        "shard_size": shard_size,
    }


def _heads(reader: RowReader) -> dict[str, int]:
    """Returns the number of attention heads at each site where the model's config knows of some."""
    found = {}
    for site in reader.sites:
        with contextlib.suppress(
            SiteError, AttributeError
        ):  # most sites are none of heads, and a `ModelSet` has no config
            found[str(site)] = reader.model.n_heads(site)
    return found


def _begun(store: Store, settings: dict[str, Any]) -> Index:
    """Returns the index of a cache that was begun with these settings, or a new one.

    Raises:
        DataError: it was begun with others.
    """
    if not store.exists(INDEX):
        return Index(settings=settings, state={})
    index = load_index(store)
    differ = differences(settings, index.settings)
    if differ:
        raise DataError(
            f"'{store.path}' holds a cache with other settings ({'; '.join(differ)}). Write into another folder, or go on with those."
        )
    store.remove_unfinished()
    return index


def _check_disk(store: Store, index: Index, dtype: torch.dtype) -> None:
    wanted, free = index.settings["n_tokens"], store.free()
    if wanted is None or free is None or index.settings["compression"]:
        return
    needed = (wanted - index.n_rows) * bytes_of_a_row(index.settings, dtype)
    if needed * _ROOM > free:
        raise DataError(
            f"{wanted - index.n_rows:,} rows take {needed / 1e9:.1f} GB, and the disk of '{store.path}' has {free / 1e9:.1f} GB left. "
            "Write fewer tokens, keep them as int8, compress them, or write elsewhere."
        )


def _joined(parts: list[dict[str, Tensor]], most: int | None) -> dict[str, Tensor] | None:
    """Returns the tensors of several parts one after another, of so many rows at most; None where there is none."""
    if not sum(len(part["token"]) for part in parts):
        return None
    return {name: torch.cat([part[name] for part in parts])[:most] for name in parts[0]}
