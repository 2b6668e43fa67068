"""`dictionary-learning info`: what this machine will use, or what a saved dictionary is."""

import argparse
import json
import logging

from dictionary_learning import ops
from dictionary_learning.activations.cache import ActivationCache
from dictionary_learning.activations.cache.index import INDEX
from dictionary_learning.activations.cache.store import Store
from dictionary_learning.dictionaries import DICTIONARIES
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.dictionaries.serialization import read_config_file, versions
from dictionary_learning.hardware import default_device, fast_dtype
from dictionary_learning.interop.saved import own_folders, saved_at
from dictionary_learning.trainers import TRAINERS

logger = logging.getLogger(__name__)


def add_parser(commands: argparse._SubParsersAction, arguments: list[str]) -> None:
    """Adds the command."""
    about = (
        "Says which implementation of each operation this machine will use, and why; or what saved dictionaries are."
    )
    parser = commands.add_parser("info", help="what will be used here, or what a dictionary is", description=about)
    parser.add_argument(
        "paths", nargs="*", help="folders of dictionaries of any format, of whole runs, or caches of activations"
    )
    parser.add_argument("--verify", action="store_true", help="compares the files of a cache with their checksums")
    parser.set_defaults(run=run)


def run(namespace: argparse.Namespace) -> None:
    """Runs the command."""
    if namespace.paths:
        for path in namespace.paths:
            if Store(path).exists(INDEX):
                _about_cache(path, namespace.verify)
                continue
            own = {str(folder): read_config_file(folder) for folder in own_folders(path)}
            others = (
                {}
                if own
                else {one.name: {"class": type(one.dictionary).__name__, **one.config} for one in saved_at(path)}
            )
            for name, config in (own or others).items():
                logger.info("%s\n%s", name, json.dumps(config, indent=2, default=str))
        return
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
        logger.info("%s", title)
        for name, value in entries.items():
            logger.info("  %s  %s", name.ljust(width), value)


def _about_cache(path: str, verify: bool) -> None:
    """Says what a cache holds.

    Raises:
        DataError: it is no cache, or is to be verified and is damaged.
    """
    cache = ActivationCache(path)
    index = cache.index
    shown = {
        name: value for name, value in cache.config.items() if name not in ("out_batch_size", "end_of_data", "window")
    }
    shown["sites"] = index.settings["sites"]
    logger.info("%s\n%s", path, json.dumps(shown, indent=2))
    state = "complete" if index.is_complete else "not complete: the same `dictionary-learning cache` goes on with it"
    logger.info("%s rows in %d files, %.2f GB, %s.", f"{index.n_rows:,}", len(index.shards), index.n_bytes / 1e9, state)
    if verify:
        cache.verify()
        logger.info("All checksums are right.")
