"""`dictionary-learning info`: what this machine will use, or what a saved dictionary is."""

import argparse
import json
import logging

from dictionary_learning import ops
from dictionary_learning.cli.evaluate import dictionary_folders
from dictionary_learning.dictionaries import DICTIONARIES
from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
from dictionary_learning.dictionaries.serialization import read_config_file, versions
from dictionary_learning.hardware import default_device, fast_dtype
from dictionary_learning.trainers import TRAINERS

logger = logging.getLogger(__name__)


def add_parser(commands: argparse._SubParsersAction, arguments: list[str]) -> None:
    """Adds the command."""
    about = (
        "Says which implementation of each operation this machine will use, and why; or what saved dictionaries are."
    )
    parser = commands.add_parser("info", help="what will be used here, or what a dictionary is", description=about)
    parser.add_argument("paths", nargs="*", help="folders of dictionaries, or of whole runs")
    parser.set_defaults(run=run)


def run(namespace: argparse.Namespace) -> None:
    """Runs the command."""
    if namespace.paths:
        for path in namespace.paths:
            for folder in dictionary_folders(path):
                logger.info("%s\n%s", folder, json.dumps(read_config_file(folder), indent=2))
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
