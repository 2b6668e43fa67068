"""A store of contexts as it is written: tables in safetensors files, and an index."""

import json
import logging
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dictionary_learning._disk import shown, size_and_checksum, write_atomically, write_json
from dictionary_learning._plain import counted
from dictionary_learning.interpretation._collector import Collector, Wanted
from dictionary_learning.interpretation._index import CONTEXTS, INDEX, STATISTICS, TOKENS, VERSION, shard_name
from dictionary_learning.interpretation._pass import LatentPass
from dictionary_learning.interpretation._spool import Spool
from dictionary_learning.interpretation._token_text import pieces_of

logger = logging.getLogger(__name__)

SHARD_SIZE = 1024
"""Latents in a file."""


def write_store(
    folder: Path,
    request: dict[str, Any],
    reading: LatentPass,
    collectors: dict[str, Collector],
    spool: Spool,
    wanted: Wanted,
) -> None:
    """Writes all files of a store, the index last: a folder with an index is complete."""
    n_latents = sum(collector.dict_size for collector in collectors.values())
    logger.info("Writing the contexts of %s into '%s'.", counted(n_latents, "latent"), shown(folder))
    spool.write(folder / CONTEXTS)
    tokenizer = reading.model.tokenizer
    pieces = None if tokenizer is None else pieces_of(tokenizer, range(len(tokenizer)))
    write_atomically(folder / TOKENS, lambda path: path.write_text(json.dumps(pieces), encoding="utf-8"))
    entries: list[dict[str, Any]] = []
    for number, (name, collector) in enumerate(collectors.items()):
        place = folder / str(number)
        place.mkdir(exist_ok=True)
        statistics = collector.statistics()
        figures = {key: value for key, value in statistics._asdict().items() if isinstance(value, Tensor)}
        _save(place / STATISTICS, figures)
        for start in range(0, collector.dict_size, SHARD_SIZE):
            stop = min(start + SHARD_SIZE, collector.dict_size)
            _save(place / shard_name(start // SHARD_SIZE), collector.tensors(start, stop))
        member = reading.members[name]
        facts = {"name": name, "folder": str(number), "n_tokens": statistics.n_tokens}
        described = {**request["dictionaries"][name], "filter": member.rule.describe()}
        entries.append({**facts, **described, "run_name": member.dictionary.info.name})
    names = [CONTEXTS, TOKENS]
    names += [f"{e['folder']}/{name}" for e in entries for name in _files_of(e["dict_size"])]
    index = {
        "format_version": VERSION,
        "request": request,
        "n_tokens_read": reading.n_read,
        "n_contexts": spool.n_contexts,
        "ctx_len": spool.ctx,
        "shard_size": SHARD_SIZE,
        "window": [wanted.before, wanted.after],
        "dictionaries": entries,
        "files": {name: size_and_checksum(folder / name) for name in names},
    }
    write_json(folder / INDEX, index)


def _files_of(dict_size: int) -> list[str]:
    """Returns the names of the files of a dictionary."""
    return [STATISTICS, *(shard_name(start // SHARD_SIZE) for start in range(0, dict_size, SHARD_SIZE))]


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    write_atomically(path, lambda temporary: save_file({k: v.contiguous() for k, v in tensors.items()}, temporary))
