"""`dictionary-learning convert`: dictionaries from one format into another."""

import argparse
import dataclasses
import logging
from typing import Any

from dictionary_learning.cli.arguments import add_config, read_config
from dictionary_learning.config import BaseConfig
from dictionary_learning.interop import FORMATS, convert

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertArguments(BaseConfig):
    """What to convert, and into what."""

    source: str
    """A folder, a file of weights, or a repository of the Hugging Face hub."""
    destination: str
    """The folder to write; of several dictionaries, each gets a folder in it."""
    to: str = "own"
    """The format to write: own, dictionary_learning, sparsify or sae_lens."""
    site: str | None = None
    """One of several dictionaries: a folder or file below, as layers.10; by default all."""
    format: str | None = None
    """The format of the source, where its files alone do not tell."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    k: int | None = None
    """How many latents are kept, where the files do not say."""
    scale: float | None = None
    """What activations are multiplied by before encoding, where the files do not say."""
    dict_class: str | None = None
    """The class of dictionary_learning, where there is no config."""


def add_parser(commands: argparse._SubParsersAction, arguments: list[str]) -> None:
    """Adds the command."""
    about = f"Converts dictionaries. Formats that are read: {', '.join(name for name, _ in FORMATS.items())}."
    parser = commands.add_parser(
        "convert", help="convert dictionaries of other packages, or for them", description=about
    )
    add_config(parser, ConvertArguments, positional=("source", "destination"))
    parser.set_defaults(run=lambda namespace: run(read_config(namespace, ConvertArguments)))


def run(arguments: ConvertArguments) -> None:
    """Runs the command."""
    facts: dict[str, Any] = {"k": arguments.k, "scale": arguments.scale, "dict_class": arguments.dict_class}
    written = convert(
        arguments.source,
        arguments.destination,
        arguments.to,
        site=arguments.site,
        format=arguments.format,
        revision=arguments.revision,
        **{name: value for name, value in facts.items() if value is not None},
    )
    for folder in written:
        logger.info("%s", folder)
