"""A cache that several ranks write: each a part of its own, and rank 0 the index of all.

A part is a folder with the rows of one share of the documents, and is written as a whole cache is:
its index holds the position in the text. The cache's own index says how many parts there are while
they are written, and lists the files of all when they are complete.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from dictionary_learning.activations._reader import RowReader, by_name
from dictionary_learning.activations.cache._checks import check_disk, check_same
from dictionary_learning.activations.cache._index import INDEX, PARTS, Index, check_file, inputs_fingerprint, load_index
from dictionary_learning.activations.cache._store import Store
from dictionary_learning.activations.cache._writer import logger, opened, written
from dictionary_learning.errors import DataError
from dictionary_learning.parallel import Ranks, on_each, on_first


def write_parts(
    store: Store, settings: dict[str, Any], reader: RowReader, dtype: torch.dtype, prefetch: int | None, world: Ranks
) -> Index:
    """Writes this rank's part of a cache, and returns the index of the whole."""
    name, n_tokens = reader.name, settings["n_tokens"]
    settings = {**settings, PARTS: world.size}
    reader = reader.share(world.rank, world.size)
    whole = _of_first(world, lambda: _begun(store, settings, reader))
    if whole.is_complete:
        return whole
    own = {**settings, "n_tokens": _share_of(n_tokens, world), "part": world.rank}
    part = store.within(_folder(world.rank))
    parts = on_each(world, lambda: opened(part, own, reader))
    n_rows = sum(one.n_rows for one in parts)

    def begin() -> None:
        check_disk(store, settings, None if n_tokens is None else n_tokens - n_rows, dtype)
        if not store.exists(INDEX):
            whole.save(store)

    on_first(world, begin)
    _agree_on_limits(reader, parts, world)
    own_part = written(part, parts[world.rank], reader, dtype, prefetch, world)
    parts = world.collect(own_part)
    return _of_first(world, lambda: _published(store, settings, parts, name))


def _begun(store: Store, settings: dict[str, Any], reader: RowReader) -> Index:
    """Returns the index of the whole, of which only a complete one has files."""
    if not store.exists(INDEX):
        return Index(settings=settings, state={PARTS: settings[PARTS]})
    index = load_index(store)
    if index.is_complete:
        settings = {**settings, "text_fingerprint": inputs_fingerprint(reader.peek(settings["refresh_batch_size"]))}
    check_same(store, index, settings)
    return index


def _of_first(world: Ranks, action: Callable[[], Index]) -> Index:
    return cast(Index, world.share(on_first(world, action)))


def _folder(rank: int) -> str:
    return f"part_{rank:03d}"


def _share_of(n_tokens: int | None, world: Ranks) -> int | None:
    """Returns the rows that a rank writes of a number of rows."""
    if n_tokens is None:
        return None
    return n_tokens * (world.rank + 1) // world.size - n_tokens * world.rank // world.size


def _agree_on_limits(reader: RowReader, parts: Sequence[Index], world: Ranks) -> None:
    """Excludes tokens by one norm on all ranks: that of the first share's first contexts."""
    if reader.filter.max_norm_multiple is None:
        return
    n_contexts = parts[0].settings["refresh_batch_size"]
    limits: dict[str, float] = next((found for one in parts if (found := one.filter.get("norm_limits"))), {})

    def find(rank: int) -> dict[str, float]:
        if world.rank == rank:
            reader.look(n_contexts)
        return by_name(reader.norm_limits)

    for rank in range(world.size):  # where the contexts of the first share have no token that counts
        limits = limits or on_each(world, lambda rank=rank: find(rank))[rank]
    if not limits:
        raise DataError(
            f"No token counts in the first {n_contexts} contexts of each of {world.size} processes, so the limit of "
            "norms is not known. Give more text, exclude less, or set max_activation_norm_multiple to None."
        )
    reader.norm_limits = {site: limits[str(site)] for site in reader.sites}


def _published(store: Store, settings: dict[str, Any], parts: Sequence[Index], name: str) -> Index:
    """Writes the index of all parts: their first files, then their second ones, and so on."""
    dropped: collections.Counter[str] = collections.Counter()
    for part in parts:
        dropped.update(part.dropped)
    placed = [(n, rank, shard) for rank, part in enumerate(parts) for n, shard in enumerate(part.shards)]
    placed.sort(key=lambda one: one[:2])
    index = Index(
        settings={**settings, **_fingerprint(parts[0])},
        shards=tuple(dataclasses.replace(shard, file=f"{_folder(rank)}/{shard.file}") for _, rank, shard in placed),
        filter=parts[0].filter,
        dropped=dict(dropped),
    )
    wanted = settings["n_tokens"]
    if not index.n_rows and wanted != 0:
        raise DataError(f"{name} holds no token that counts ({dict(dropped)}). Give more text, or exclude less.")
    if any(part.n_rows < (part.settings["n_tokens"] or 0) for part in parts):
        short = "The text of a process has ended before its share of %s rows, so there are %s. Give more text for more."
        logger.warning(short, f"{wanted:,}", f"{index.n_rows:,}")
    for shard in index.shards:
        check_file(store, shard)
    index.save(store)
    return index


def _fingerprint(part: Index) -> dict[str, Any]:
    return {name: part.settings[name] for name in ("text_fingerprint",) if name in part.settings}
