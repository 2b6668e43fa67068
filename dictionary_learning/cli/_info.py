"""`dictionary-learning info`: what this machine will use, or what is saved at a path."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

from dictionary_learning.cli._arguments import CommandArguments, write_line

_VERIFIED = "All checksums are right."


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoArguments(CommandArguments):
    """Shows how this machine computes each operation, and why; or what saved dictionaries are."""

    positional: ClassVar = ("paths",)
    paths: tuple[str, ...] = ()
    """Folders of dictionaries of any format, of runs, of cached activations, or of contexts."""
    verify: bool = False
    """Whether the files of a cache or of contexts are compared with their checksums."""

    def run(self) -> None:
        from dictionary_learning.activations.cache._index import INDEX
        from dictionary_learning.activations.cache._store import Store
        from dictionary_learning.cli._candidates import configs_at
        from dictionary_learning.interpretation._index import CONTEXTS

        for path in self.paths:
            if (Path(path) / CONTEXTS).is_file():
                _show_contexts(path, self.verify)
                continue
            if Store(path).exists(INDEX):
                _show_cache(path, self.verify)
                continue
            for name, config in configs_at(path).items():
                write_line(f"{name}\n{json.dumps(config, indent=2, default=str)}")
        if not self.paths:
            _show_machine()


def _show_machine() -> None:
    from dictionary_learning import ops
    from dictionary_learning._hardware import default_device, fast_dtype
    from dictionary_learning.dictionaries import DICTIONARIES
    from dictionary_learning.dictionaries._serialization import versions
    from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
    from dictionary_learning.trainers import TRAINERS

    device = default_device()
    model_dtype = str(fast_dtype(device)).removeprefix("torch.")
    sections = {
        "versions": versions(),
        "hardware": {"device": str(device), "dtype of language models": model_dtype},
        "operations": ops.status(device),
        "known": {
            "trainers": ", ".join(name for name, _ in TRAINERS.items()),
            "dictionaries": ", ".join(DICTIONARIES),
            "nonlinearities": ", ".join(NONLINEARITIES),
        },
    }
    for title, entries in sections.items():
        width = max(map(len, entries))
        write_line(title)
        for name, value in entries.items():
            write_line(f"  {name.ljust(width)}  {value}")


def _show_cache(path: str, verify: bool) -> None:
    """Shows what a cache holds.

    Raises:
        DataError: it is no cache, or it was to be verified and is damaged.
    """
    from dictionary_learning._plain import as_bytes
    from dictionary_learning.activations.cache import ActivationCache

    cache = ActivationCache(path)
    index = cache.index
    # how this reader would serve the rows is no property of the cache
    config = {k: v for k, v in cache.config.items() if k not in ("out_batch_size", "end_of_data", "window")}
    config["sites"] = index.settings["sites"]
    write_line(f"{path}\n{json.dumps(config, indent=2)}")
    state = "complete" if index.is_complete else "incomplete: the same `dictionary-learning cache` continues it"
    write_line(f"{index.n_rows:,} rows in {len(index.shards)} files, {as_bytes(index.n_bytes)}, {state}.")
    if verify:
        cache.verify()
        write_line(_VERIFIED)


def _show_contexts(path: str, verify: bool) -> None:
    """Shows what a store of contexts holds.

    Raises:
        DataError: it is damaged.
    """
    from dictionary_learning.interpretation import ContextStore

    store = ContextStore.open(path)
    write_line(f"{path}\n{json.dumps({'model': store.model, 'data': store.data}, indent=2)}")
    for name in store:
        one = store[name]
        write_line(f"{name}: {one.class_name} of {one.dict_size:,} latents at {one.site}")
    if verify:
        store.verify()
        write_line(_VERIFIED)
