"""What determines the rows of a cache, and what is checked before they are written."""

import contextlib
from typing import Any

import torch

from dictionary_learning._plain import as_bytes
from dictionary_learning.activations._reader import RowReader
from dictionary_learning.activations.cache._index import PARTS, Index, check_file, differences, model_fingerprint
from dictionary_learning.activations.cache._shards import ORIGIN
from dictionary_learning.activations.cache._store import Store
from dictionary_learning.errors import DataError, SiteError

_ORIGIN_BYTES = 4  # bytes of a token, a document or a position
_ROOM = 1.02  # free space needed for each byte of rows: headers and the index come on top


def bytes_of_a_row(settings: dict[str, Any], dtype: torch.dtype) -> int:
    """Returns the uncompressed size of a row at all sites, with its origin."""
    widths = settings["sites"].values()
    scales = 4 * len(widths) if dtype is torch.int8 else 0
    return sum(widths) * dtype.itemsize + scales + len(ORIGIN) * _ORIGIN_BYTES


def reader_settings(reader: RowReader) -> dict[str, Any]:
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


def check_same(store: Store, index: Index, settings: dict[str, Any]) -> None:
    """Checks that a cache was started with these settings, and that its shards are there."""
    n_parts, n_there = settings.get(PARTS, 1), index.settings.get(PARTS, 1)
    if n_parts != n_there:
        if not index.is_complete:
            raise DataError(
                f"'{store.path}' was begun by {n_there} processes, each with a share of the text, and this job has "
                f"{n_parts}. Start {n_there}, as by torchrun --nproc-per-node {n_there}, or use another folder."
            )
        # shares begin with other contexts
        settings = {name: value for name, value in settings.items() if name != "text_fingerprint"}
    if differ := differences(settings, index.settings):
        raise DataError(
            f"'{store.path}' holds a cache with other settings ({'; '.join(differ)}). Use another folder, or those "
            "settings."
        )
    for shard in index.shards:
        check_file(store, shard)
    store.remove_unfinished()


def check_disk(store: Store, settings: dict[str, Any], n_rows: int | None, dtype: torch.dtype) -> None:
    """Checks that there is room for so many rows; None where their number is not known."""
    free = store.free()
    if n_rows is None or free is None or settings["compression"]:
        return
    needed = n_rows * bytes_of_a_row(settings, dtype)
    if needed * _ROOM > free:
        raise DataError(
            f"{n_rows:,} rows take {as_bytes(needed)}, and '{store.path}' has {as_bytes(free)} left. "
            "Write fewer tokens, store them as int8, compress them, or write elsewhere."
        )
