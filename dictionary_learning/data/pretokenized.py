"""Contexts made once and kept: `pretokenize` writes what a `TokenStream` would serve, and `as_source` reads it.

Beside the ids stands whose they are (`TokenRow.runs`), and beside the data how they were made: tokenizer, length, and where BOS and
separators stand. A stream that asks for the same serves the rows as they are; one that asks for another length packs the documents anew.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dictionary_learning.data.columns import RUNS_COLUMN, ReadOptions
from dictionary_learning.data.feed import Feed
from dictionary_learning.data.hub import (
    cache_folder,
    dataset_source,
    open_rows,
    push_with_metadata,
    save_with_metadata,
    write_rows,
)
from dictionary_learning.data.packing import PackedContexts
from dictionary_learning.data.special_tokens import SpecialTokens
from dictionary_learning.data.text import as_source
from dictionary_learning.data.token_batch import Row
from dictionary_learning.data.tokens import TokenStream
from dictionary_learning.data.vocabulary import fingerprint
from dictionary_learning.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 256
_VERSION = 1


def pretokenize(
    data: Any, tokenizer: Any, out: str | os.PathLike, *, ctx_len: int = 128, push: str | None = None, **options: Any
) -> int:
    """Writes the contexts of some data into a folder, which is there when all are written, and not before.

    Args:
        data: a source, or whatever `as_source` takes.
        tokenizer: makes the ids.
        out: the folder; it must not be there.
        ctx_len: tokens in a context.
        push: a data set on the hub, as "user/name", that is made too.
        options: those of `TokenStream` that say where BOS, separators and cuts are.

    Returns:
        How many contexts were written.

    Raises:
        ConfigError: the folder is there already.
        DataError: the data holds no text.
    """
    folder = Path(out).expanduser()
    if folder.exists():
        raise ConfigError(f"'{folder}' is there already; name a folder that is not, or remove it.")
    source = as_source(data)
    # a source that was read from is kept from its first document on, too
    stream = TokenStream(source.fresh() if source.repeatable else source, tokenizer, ctx_len=ctx_len, **options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        written = Path(place)
        columns = {"input_ids": "int32", RUNS_COLUMN: "int64"}
        dataset = write_rows(_records(stream), written / "rows.arrow", columns)
        if not len(dataset):
            raise DataError(f"{stream.source.name} holds no text. Give at least one document that is not empty.")
        metadata = _metadata(stream, tokenizer)
        save_with_metadata(dataset, written / "saved", metadata)
        if push is not None:
            push_with_metadata(dataset, push, metadata)
        n = len(dataset)
        del dataset  # it holds the file open
        shutil.move(written / "saved", folder)
    logger.info("Wrote %d contexts of %d tokens to %s.", n, ctx_len, folder)
    return n


def _records(stream: TokenStream) -> Iterator[Mapping[str, list[int]]]:
    while rows := stream.take_rows(_ROWS_AT_ONCE):
        for row in rows:
            yield {"input_ids": row.ids, RUNS_COLUMN: [number for run in row.runs for number in run]}


def _metadata(stream: TokenStream, tokenizer: Any) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "source": stream.source.name,
        "tokenizer": tokenizer.name_or_path,
        "fingerprint": fingerprint(tokenizer),
        "ctx_len": stream.ctx_len,
        "packing": stream.packing,
    }


def chunk_and_tokenize(
    data: Any,
    tokenizer: Any,
    *,
    format: str = "torch",
    num_proc: int | None = None,
    text_key: str = "text",
    max_seq_len: int = 2048,
    return_final_batch: bool = False,
    load_from_cache_file: bool = True,
) -> Any:
    """Returns a data set with `input_ids`: its documents, each with EOS before it, joined and cut into chunks of one length.

    Args:
        data: a `datasets.Dataset` of text.
        tokenizer: makes the ids.
        format: of the rows of what is returned.
        num_proc: taken for the sake of older scripts; the tokenizer uses the cores that there are.
        text_key: the column that holds the text.
        max_seq_len: tokens in a chunk; fewer where the tokenizer says that the model takes fewer.
        return_final_batch: whether what is left over makes a last chunk, which is shorter.
        load_from_cache_file: whether chunks that were made of the same data before are read, and not made again.
    """
    length = min(max_seq_len, tokenizer.model_max_length)
    source = dataset_source(data, ReadOptions(text_key), "the data set")
    eos = tokenizer.eos_token_id
    special = SpecialTokens(bos=eos, at_document=eos is not None, at_context=False, separator=None)
    contexts = PackedContexts(Feed(source, 1, lambda: None), tokenizer, special, length)
    made_by = [getattr(data, "_fingerprint", None), fingerprint(tokenizer), text_key, length, return_final_batch]
    name = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:32]
    path = cache_folder() / "chunk_and_tokenize" / f"{name}.arrow"
    if not (path.is_file() and load_from_cache_file and made_by[0]):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{name}-{os.getpid()}.tmp")
        write_rows(_chunks(contexts, length, return_final_batch), unfinished, {"input_ids": "int32"})
        os.replace(unfinished, path)
    return open_rows(path).with_format(format)


def _chunks(contexts: PackedContexts, length: int, final: bool) -> Iterator[Mapping[str, list[int]]]:
    rows: list[Row]
    while rows := contexts.take(_ROWS_AT_ONCE):
        for row in rows:
            if final or len(row.ids) == length:
                yield {"input_ids": row.ids}
