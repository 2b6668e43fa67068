"""`dictionary-learning cache`: activations of a model on disk, to train on without it."""

import argparse
import dataclasses
from typing import Literal

from dictionary_learning.activations.cache import write_cache
from dictionary_learning.cli.arguments import add_config, read_config
from dictionary_learning.cli.capture_options import CaptureArguments


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheArguments(CaptureArguments):
    """Which activations to write, and where."""

    model: str
    """The language model: a name on the Hugging Face hub, a local folder, or a GGUF file."""
    data: str
    """The data: a file (.txt, .jsonl, .parquet, .npy and others), a folder or pattern of files, or the name of a data set on the hub."""
    out: str
    """The folder for the cache, or an address such as s3://bucket/folder. What a writer before began there is taken up again."""
    n_tokens: int | None = None
    """Tokens to write; by default all."""
    shard_size: int = 65_536
    """Rows in a file; they are held in memory, and shuffled together."""
    storage_dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None
    """What rows are kept as; the model's dtype, if not given."""
    compression: Literal["zstd"] | None = None
    """Compresses the files, which then cannot be mapped into memory."""
    seed: int = 0
    """Seed of the shuffle."""


def add_parser(commands: argparse._SubParsersAction, arguments: list[str]) -> None:
    """Adds the command."""
    about = (
        "Writes activations into a folder, which train takes with --cache, and which info and --verify look at. A writer that was stopped "
        "at any point goes on where it was, with the same command."
    )
    parser = commands.add_parser("cache", help="write activations to disk", description=about)
    add_config(parser, CacheArguments, positional=("model", "data"))
    parser.set_defaults(run=lambda namespace: run(read_config(namespace, CacheArguments)))


def run(arguments: CacheArguments) -> None:
    """Runs the command."""
    text = arguments.divided(arguments.data, arguments.held_out_every)[0]
    model = arguments.load(arguments.model)
    write_cache(
        arguments.out,
        text,
        model,
        arguments.sites_of(model),
        n_tokens=arguments.n_tokens,
        refresh_batch_size=arguments.refresh_batch_size,
        shard_size=arguments.shard_size,
        dtype=arguments.storage_dtype,
        compression=arguments.compression,
        seed=arguments.seed,
        prefetch=arguments.prefetch,
        ctx_len=arguments.ctx_len,
        remove_bos=arguments.remove_bos,
        seqpos_slice=arguments.positions,
        max_activation_norm_multiple=arguments.max_activation_norm_multiple,
        pack=arguments.pack,
        run_cfg=arguments.to_dict(),
    )
