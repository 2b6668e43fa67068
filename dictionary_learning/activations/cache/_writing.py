"""Writes a cache, in one process or on several ranks."""

import contextlib
import os
from collections.abc import Generator, Mapping
from typing import Any, Literal

import torch

from dictionary_learning._border import checked
from dictionary_learning._plain import to_plain
from dictionary_learning._run_folder import claim_run_folder
from dictionary_learning._types import ModelLike, SubmodulesLike, TextLike
from dictionary_learning.activations._reader import ReadingConfig, RowReader, row_reader
from dictionary_learning.activations._storage import storage_dtype
from dictionary_learning.activations.cache._checks import check_disk, reader_settings
from dictionary_learning.activations.cache._index import INDEX, Index, load_index
from dictionary_learning.activations.cache._parts import write_parts
from dictionary_learning.activations.cache._store import Store
from dictionary_learning.activations.cache._writer import logger, opened, written
from dictionary_learning.errors import DataError
from dictionary_learning.parallel import Ranks, on_first, only_first_talks, start


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

    The first contexts and some of the weights are compared with those of an existing cache. Under
    torchrun all ranks call it; each writes the activations of its share of the text.

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
        ConfigError: an argument cannot be used, or another process writes there.
        RankError: another rank failed or has ended.
    """
    world = start()
    dtype = None if dtype is None else storage_dtype(dtype)
    reader = row_reader(data, model, submodule, ReadingConfig.from_dict(reading))
    stored = storage_dtype(dtype or reader.model.dtype)
    settings: dict[str, Any] = {
        **reader_settings(reader),
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
    with only_first_talks(world), _claimed(store, world):
        write = _write if world.size == 1 else write_parts
        index = write(store, settings, reader, stored, prefetch, world)
        logger.info("%s is complete: %s rows.", store.path, f"{index.n_rows:,}")
        return index


def _write(
    store: Store, settings: dict[str, Any], reader: RowReader, dtype: torch.dtype, prefetch: int | None, world: Ranks
) -> Index:
    index = opened(store, settings, reader)
    if index.is_complete:
        return index
    n_tokens = settings["n_tokens"]
    check_disk(store, settings, None if n_tokens is None else n_tokens - index.n_rows, dtype)
    return written(store, index, reader, dtype, prefetch, world)


@contextlib.contextmanager
def _claimed(store: Store, world: Ranks) -> Generator[None]:
    """Refuses a second job that writes into a folder; what is complete is only looked at."""
    with contextlib.ExitStack() as stack:

        def claim() -> None:
            is_complete = store.exists(INDEX) and load_index(store).is_complete
            if store.folder is not None and not is_complete:
                stack.enter_context(claim_run_folder(store.folder, keep=True))

        on_first(world, claim)
        yield
