"""`dictionary-learning pretokenize`: from text to a folder of contexts, which `train` reads without a tokenizer's work."""

import argparse
import dataclasses
from typing import Literal

from dictionary_learning.cli.arguments import add_config, read_config
from dictionary_learning.cli.data_options import DataArguments
from dictionary_learning.data import pretokenize
from dictionary_learning.hf_models import load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretokenizeArguments(DataArguments):
    """What to make contexts of, how, and where they go."""

    data: str
    """The data: a file (.txt, .jsonl, .parquet and others), a folder or pattern of files, or the name of a data set on the hub."""
    model: str
    """The language model whose tokenizer is taken: a name on the Hugging Face hub, a local folder, or a GGUF file."""
    out: str
    """The folder for the contexts; it must not be there yet."""
    ctx_len: int = 128
    """Tokens in a context."""
    pack: bool = True
    """Whether documents are joined into full contexts; else each is a context, cut at its length."""
    add_special_tokens: bool = True
    """Whether BOS and separators are put in."""
    bos: Literal["document", "context", "both", "none"] | None = None
    """What begins with BOS; by default both documents and contexts, where the tokenizer has a BOS token."""
    separator: str = "auto"
    """Ends each document: eos, bos, a token or its id, none for nothing; auto for EOS where no BOS begins documents."""
    revision: str | None = None
    """The model's branch, tag or commit on the hub."""
    push: str | None = None
    """A data set on the hub, as user/name, that the contexts are put into, too."""


def add_parser(commands: argparse._SubParsersAction, arguments: list[str]) -> None:
    """Adds the command."""
    about = "Writes the contexts of a text into a folder, which train and evaluate take as data, and which can be put on the hub."
    parser = commands.add_parser("pretokenize", help="make contexts of a text once, and keep them", description=about)
    add_config(parser, PretokenizeArguments, positional=("data",))
    parser.set_defaults(run=lambda namespace: run(read_config(namespace, PretokenizeArguments)))


def run(arguments: PretokenizeArguments) -> int:
    """Runs the command; returns how many contexts were written."""
    return pretokenize(
        arguments.source(arguments.data),
        load_tokenizer(arguments.model, arguments.revision),
        arguments.out,
        ctx_len=arguments.ctx_len,
        pack=arguments.pack,
        add_special_tokens=arguments.add_special_tokens,
        bos=arguments.bos,
        separator=_token(arguments.separator),
        push=arguments.push,
    )


def _token(word: str) -> int | str | None:
    return None if word.lower() == "none" else int(word) if word.isdecimal() else word
