"""The options of `python -m sparsify`, by their names and with their meaning."""

import argparse
import dataclasses
import os
import typing
from collections.abc import Sequence
from typing import Any, Literal

from dictionary_learning.compat.sparsify.config import SparseCoderConfig, TrainConfig
from dictionary_learning.config import field_docs
from dictionary_learning.errors import ConfigError

MODEL, DATASET = "HuggingFaceTB/SmolLM2-135M", "EleutherAI/SmolLM2-135M-10B"
"""The model and the data of sparsify's command, where none are given."""
_ALIASES = {"expansion_factor": ["--expansion_ratio"], "hookpoints": ["--hook_points"]}


@dataclasses.dataclass
class RunConfig(TrainConfig):
    """Settings of a run that loads its model and its data."""

    model: str = MODEL
    """The model."""
    dataset: str = DATASET
    """A data set on the hub, a folder of one, a file of text, or a .bin file of token ids."""
    split: str = "train"
    """The split of the data set."""
    ctx_len: int = 2048
    """Tokens in a sequence."""
    hf_token: str | None = None
    """A token of the Hugging Face hub, which is not saved."""
    revision: str | None = None
    """The revision of the model."""
    load_in_8bit: bool = False
    """Whether the model is loaded in 8 bits, by bitsandbytes."""
    max_examples: int | None = None
    """The number of sequences."""
    resume: bool = False
    """Whether to go on from the newest checkpoint of the run."""
    text_column: str = "text"
    """The column of the text."""
    shuffle_seed: int = 42
    """The seed of the order of the sequences."""
    data_preprocessing_num_proc: int | None = None
    """Has no effect: the tokenizer uses all cores."""
    data_args: str = ""
    """Arguments of `datasets.load_dataset`, as name=value,name=value."""


def parse(arguments: Sequence[str]) -> RunConfig:
    """Returns the settings that a command line gives."""
    parser = argparse.ArgumentParser(
        "python -m dictionary_learning.compat.sparsify",
        description="Trains sparse coders with the options of EleutherAI's sparsify. batch_size counts sequences.",
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", default=MODEL, help=f"{MODEL} by default")
    parser.add_argument("dataset", nargs="?", default=DATASET, help=f"{DATASET} by default")
    for cls in (RunConfig, SparseCoderConfig):
        hints, docs = typing.get_type_hints(cls), field_docs(cls)
        for field in dataclasses.fields(cls):
            if field.name not in ("model", "dataset", "sae"):
                _add(parser, field, hints[field.name], docs.get(field.name, ""))
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    coder = {field.name for field in dataclasses.fields(SparseCoderConfig)}
    sae = SparseCoderConfig(**{name: value for name, value in given.items() if name in coder})
    return RunConfig(sae=sae, **{name: value for name, value in given.items() if name not in coder})


def _add(parser: argparse.ArgumentParser, field: Any, hint: Any, text: str) -> None:
    names = [f"--{field.name}", *_ALIASES.get(field.name, [])]
    names += [name.replace("_", "-") for name in names if "_" in name]
    options: dict[str, Any] = {"dest": field.name, "default": None, "help": text.replace("%", "%%")}
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    if hint is bool:
        # a flag, or a flag with a value
        options |= {"nargs": "?", "const": True, "type": _boolean, "metavar": "true|false"}
    elif typing.get_origin(hint) is Literal:
        options |= {"choices": parts}
    elif typing.get_origin(hint) is list:
        options |= {"nargs": "+", "type": _number if parts[0] is int else str}
    else:
        kind = parts[0] if parts else hint
        options |= {"type": _number if kind is int else kind}
    parser.add_argument(*names, **options)


def _number(text: str) -> int:
    return int(text)  # "10_000" too


def _boolean(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return words[text.lower()]


def data_args(text: str) -> dict[str, Any]:
    """Returns arguments written as name=value,name=value; words that are numbers become numbers."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, sign, value = part.partition("=")
        if not sign or not name:
            raise ConfigError(f"Got --data_args {text!r}; write name=value,name=value.")
        words: dict[str, Any] = {"true": True, "false": False, "none": None}
        found[name.strip()] = words.get(value.lower(), int(value) if value.lstrip("-").isdigit() else value)
    return found


def with_token(token: str | None) -> None:
    """Makes a token of the hub known to its client, in this process."""
    if token is not None:
        os.environ["HF_TOKEN"] = token
