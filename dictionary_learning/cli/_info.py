"""`dictionary-learning info`: what this machine will use, or what is saved at a path."""

import argparse
import json
from collections.abc import Sequence

from dictionary_learning.cli._arguments import Parser, write_line


def build_parser(arguments: Sequence[str]) -> Parser:
    """Returns the command's parser."""
    about = (
        "Shows which implementation of each operation this machine will use, and why; or what saved dictionaries are."
    )
    parser = Parser("info", about)
    parser.add_argument(
        "paths", nargs="*", help="folders of dictionaries of any format, of runs, or of cached activations"
    )
    parser.add_argument("--verify", action="store_true", help="compare the files of a cache with their checksums")
    parser.set_defaults(run=run)
    return parser


def run(namespace: argparse.Namespace) -> None:
    """Runs the command."""
    from dictionary_learning.activations.cache._index import INDEX
    from dictionary_learning.activations.cache._store import Store
    from dictionary_learning.cli._candidates import configs_at

    for path in namespace.paths:
        if Store(path).exists(INDEX):
            _show_cache(path, namespace.verify)
            continue
        for name, config in configs_at(path).items():
            write_line(f"{name}\n{json.dumps(config, indent=2, default=str)}")
    if not namespace.paths:
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
    from dictionary_learning.activations.cache import ActivationCache

    cache = ActivationCache(path)
    index = cache.index
    # how this reader would serve the rows is no property of the cache
    config = {k: v for k, v in cache.config.items() if k not in ("out_batch_size", "end_of_data", "window")}
    config["sites"] = index.settings["sites"]
    write_line(f"{path}\n{json.dumps(config, indent=2)}")
    state = "complete" if index.is_complete else "incomplete: the same `dictionary-learning cache` continues it"
    write_line(f"{index.n_rows:,} rows in {len(index.shards)} files, {index.n_bytes / 1e9:.2f} GB, {state}.")
    if verify:
        cache.verify()
        write_line("All checksums are right.")
