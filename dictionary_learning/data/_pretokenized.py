"""Contexts that are made once: `pretokenize` writes them, `as_source` reads them.

The documents of the tokens (`TokenRow.runs`) are stored beside the ids, and the tokenizer, the
length and the rule for BOS and separators beside the data. A stream with the same settings serves
the rows as they are; one with another length packs the documents again.
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

from dictionary_learning._types import TextLike
from dictionary_learning.data._document import RUNS_COLUMN, ReadOptions
from dictionary_learning.data._hub import cache_folder, dataset_reader, open_rows, save_with_metadata, write_rows
from dictionary_learning.data._packing import PackedContexts
from dictionary_learning.data._source import EpochReader, Source
from dictionary_learning.data._streams import as_token_stream
from dictionary_learning.data._tokenizing import SpecialTokens, fingerprint
from dictionary_learning.data._tokens import TokenStream
from dictionary_learning.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 256
_VERSION = 1


def pretokenize(
    data: TextLike,
    tokenizer: Any,
    out: str | os.PathLike[str],
    *,
    ctx_len: int = 128,
    push: str | None = None,
    **options: Any,
) -> int:
    """Writes the contexts of some data to a folder, which appears when all of them are written.

    Args:
        data: Any data that `as_source` accepts; read from its first document.
        tokenizer: Makes the ids.
        out: The folder; it must not exist.
        ctx_len: Tokens in a context.
        push: The name of a data set on the hub, "user/name", that is created as well.
        options: Options of `TokenStream` for BOS, separators and cuts.

    Returns:
        The number of contexts written.

    Raises:
        ConfigError: The folder exists.
        DataError: The data holds no text.
    """
    folder = Path(out).expanduser()
    if folder.exists():
        raise ConfigError(f"'{folder}' is there already; name a folder that is not, or remove it.")
    stream = as_token_stream(data, tokenizer, ctx_len=ctx_len, fresh=True, **options)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        written = Path(place)  # on the same disk, so that the folder can be moved in one step
        dataset = write_rows(_records(stream), written / "rows.arrow", {"input_ids": "int32", RUNS_COLUMN: "int64"})
        n_rows = len(dataset)
        if not n_rows:
            raise DataError(f"{stream.source.name} holds no text. Provide at least one document that is not empty.")
        metadata = {
            "version": _VERSION,
            "source": stream.source.name,
            "tokenizer": tokenizer.name_or_path,
            "fingerprint": fingerprint(tokenizer),
            "ctx_len": stream.ctx_len,
            "packing": stream.packing,
        }
        save_with_metadata(dataset, written / "saved", metadata, push)
        del dataset  # holds the file open
        shutil.move(written / "saved", folder)
    logger.info("Wrote %d contexts of %d tokens to %s.", n_rows, ctx_len, folder)
    return n_rows


def _records(stream: TokenStream) -> Iterator[Mapping[str, list[int]]]:
    while rows := stream.take_rows(_ROWS_AT_ONCE):
        for row in rows:
            yield {"input_ids": row.ids, RUNS_COLUMN: [number for run in row.runs for number in run]}


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
    """Returns a data set of chunks: documents, each after an EOS, joined and cut.

    Args:
        data: A `datasets.Dataset` of text.
        tokenizer: Makes the ids.
        format: The format of the returned data set.
        num_proc: Unused, for older scripts; the tokenizer uses all cores.
        text_key: The column that holds the text.
        max_seq_len: Tokens in a chunk; fewer if the tokenizer's `model_max_length` is smaller.
        return_final_batch: Returns the rest of the text as a last, shorter chunk.
        load_from_cache_file: Loads chunks that were made of the same data before.
    """
    length = min(max_seq_len, tokenizer.model_max_length)
    source = Source(*dataset_reader(data, ReadOptions(text_key), "the data set"))
    eos = tokenizer.eos_token_id
    special = SpecialTokens(bos=eos, at_document=eos is not None, at_context=False, separator=None)
    contexts = PackedContexts(EpochReader(source, 1, lambda: None), tokenizer, special, length)
    made_by = [getattr(data, "_fingerprint", None), fingerprint(tokenizer), text_key, length, return_final_batch]
    name = hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:32]
    path = cache_folder() / "chunk_and_tokenize" / f"{name}.arrow"
    if not (path.is_file() and load_from_cache_file and made_by[0]):
        path.parent.mkdir(parents=True, exist_ok=True)
        # written under another name: a file of that name is complete
        unfinished = path.with_name(f"{name}-{os.getpid()}.tmp")
        write_rows(_chunks(contexts, length, return_final_batch), unfinished, {"input_ids": "int32"})
        os.replace(unfinished, path)
    return open_rows(path).with_format(format)


def _chunks(contexts: PackedContexts, length: int, final: bool) -> Iterator[Mapping[str, list[int]]]:
    while rows := contexts.take(_ROWS_AT_ONCE):
        for row in rows:
            if final or len(row.ids) == length:
                yield {"input_ids": row.ids}
