"""`dictionary-learning convert`: dictionaries from one format into another."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dictionary_learning.cli._arguments import CommandArguments, Parser, config_parser, write_line

_ABOUT = (
    "Converts dictionaries. Reads every format that load_dictionary reads; an unknown --format lists them. Prints the path of "
    "each folder that it writes."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertArguments(CommandArguments):
    """What to convert, and to which format."""

    source: str
    """A folder, a file of weights, or a repository of the Hugging Face hub."""
    destination: str
    """The folder to write; each of several dictionaries gets a folder in it."""
    to: str = "own"
    """The format to write: own, dictionary_learning, sparsify or sae_lens."""
    site: str | None = None
    """One of several dictionaries: a folder or file in the source, as layers.10; by default all."""
    format: str | None = None
    """The format of the source, if its files do not tell."""
    revision: str | None = None
    """Branch, tag or commit of the repository."""
    k: int | None = None
    """The k of the dictionary, if the files do not tell."""
    scale: float | None = None
    """The factor on activations before encoding, if the files do not tell."""
    dict_class: str | None = None
    """The class of dictionary_learning, if there is no config."""


def build_parser(arguments: Sequence[str]) -> Parser:
    """Returns the command's parser."""
    return config_parser("convert", _ABOUT, ConvertArguments, run, positional=("source", "destination"))


def run(arguments: ConvertArguments) -> None:
    """Runs the command."""
    from dictionary_learning._run_folder import resolve_latest
    from dictionary_learning.interop import convert

    facts: dict[str, Any] = {"k": arguments.k, "scale": arguments.scale, "dict_class": arguments.dict_class}
    written = convert(
        resolve_latest(arguments.source),
        arguments.destination,
        arguments.to,
        site=arguments.site,
        format=arguments.format,
        revision=arguments.revision,
        **{name: value for name, value in facts.items() if value is not None},
    )
    for folder in written:
        write_line(str(folder))
