"""The command line: `dictionary-learning train | evaluate | cache | pretokenize | info | convert | pretrained`."""

import argparse
import logging
import sys
from collections.abc import Sequence

from dictionary_learning.cli import cache, convert, evaluate, info, pretokenize, pretrained, train
from dictionary_learning.errors import DictionaryLearningError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status, 2 for an error that the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "datasets", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(
        prog="dictionary-learning", description="Train, evaluate and use dictionaries of activations."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    try:
        for command in (train, evaluate, cache, pretokenize, info, convert, pretrained):
            command.add_parser(commands, arguments)
        namespace = parser.parse_args(arguments)
        namespace.run(namespace)
    except DictionaryLearningError as error:
        logging.getLogger(__name__).error("%s: %s", type(error).__name__, error)
        return 2
    return 0
