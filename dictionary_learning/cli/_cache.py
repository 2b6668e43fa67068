"""`dictionary-learning cache`: writes a model's activations to disk, to train on without the model."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from dictionary_learning.cli._arguments import Parser, config_parser
from dictionary_learning.cli._options import CaptureArguments

_ABOUT = (
    "Writes activations into a folder, for train --cache; info --verify checks it. The same command continues after a writer "
    "that was stopped at any point."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheArguments(CaptureArguments):
    """Which activations to write, and where."""

    model: str
    """The language model: a name on the Hugging Face hub, a local folder, or a GGUF file."""
    data: str
    """The data: a file (.txt, .jsonl, .parquet, .npy and others), a folder or pattern of files, or a data set on the hub."""
    out: str
    """The folder for the cache, or an address such as s3://bucket/folder. An unfinished cache there is continued."""
    n_tokens: int | None = None
    """Tokens to write; by default all."""
    shard_size: int = 65_536
    """Rows in a file; they are in memory together, and shuffled."""
    storage_dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    """The type of the stored rows; by default the model's dtype."""
    compression: Literal["zstd"] | None = None
    """Compresses the files, which then cannot be mapped into memory."""
    seed: int = 0
    """Seed of the shuffle."""


def build_parser(arguments: Sequence[str]) -> Parser:
    """Returns the command's parser."""
    return config_parser("cache", _ABOUT, CacheArguments, run, positional=("model", "data"))


def run(arguments: CacheArguments) -> None:
    """Runs the command."""
    from dictionary_learning.activations.cache import write_cache

    text = arguments.divided(arguments.data, arguments.held_out_every)[0]
    model = arguments.load(arguments.model)
    write_cache(
        arguments.out,
        text,
        model,
        arguments.sites_of(model),
        n_tokens=arguments.n_tokens,
        shard_size=arguments.shard_size,
        dtype=arguments.storage_dtype,
        compression=arguments.compression,
        seed=arguments.seed,
        run_cfg=arguments.to_dict(),
        **arguments.reading,
    )
