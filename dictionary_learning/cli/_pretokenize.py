"""`dictionary-learning pretokenize`: tokenizes a text once and stores the contexts, which other commands read as data."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from dictionary_learning.cli._arguments import Parser, config_parser
from dictionary_learning.cli._options import DataArguments

_ABOUT = "Writes the contexts of a text into a folder, which train and evaluate read as data, and which can be put on the hub."


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretokenizeArguments(DataArguments):
    """What to tokenize, how, and where the contexts are written."""

    data: str
    """The data: a file (.txt, .jsonl, .parquet and others), a folder or pattern of files, or a data set on the hub."""
    model: str
    """The language model whose tokenizer is used: a name on the Hugging Face hub, a local folder, or a GGUF file."""
    out: str
    """The folder for the contexts; it must not exist."""
    ctx_len: int = 128
    """Tokens in a context."""
    pack: bool = True
    """Whether documents are packed into full contexts; otherwise each is a context, cut at its length."""
    add_special_tokens: bool = True
    """Whether BOS and separators are added."""
    bos: Literal["document", "context", "both", "none"] | None = None
    """What begins with BOS; by default both documents and contexts, where the tokenizer has a BOS token."""
    separator: str = "auto"
    """What ends each document: eos, bos, a token or its id, or none; auto is EOS where no BOS begins documents."""
    revision: str | None = None
    """The model's branch, tag or commit on the hub."""
    push: str | None = None
    """A data set on the hub, as user/name, to upload the contexts to."""


def build_parser(arguments: Sequence[str]) -> Parser:
    """Returns the command's parser."""
    return config_parser("pretokenize", _ABOUT, PretokenizeArguments, run, positional=("data",))


def run(arguments: PretokenizeArguments) -> int:
    """Runs the command; returns how many contexts were written."""
    from dictionary_learning.data import pretokenize
    from dictionary_learning.models import load_tokenizer

    word = arguments.separator
    return pretokenize(
        arguments.source(arguments.data),
        load_tokenizer(arguments.model, arguments.revision),
        arguments.out,
        ctx_len=arguments.ctx_len,
        pack=arguments.pack,
        add_special_tokens=arguments.add_special_tokens,
        bos=arguments.bos,
        separator=None if word.lower() == "none" else int(word) if word.isdecimal() else word,
        push=arguments.push,
    )
