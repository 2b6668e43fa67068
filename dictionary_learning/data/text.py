"""Where documents come from: anything that gives one after another.

`as_source` makes a `Source` of whatever holds text, conversations or token ids. A source knows its position, so it can be resumed, and a
part of it can be held out.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dictionary_learning.data.columns import ROWS_LOOKED_AT, ReadOptions, tokenized_like
from dictionary_learning.data.compression import COMPRESSIONS
from dictionary_learning.data.document import Chat, as_document
from dictionary_learning.data.files import files_source, is_pattern, kind_of
from dictionary_learning.data.memory_map import array_reader
from dictionary_learning.data.reading import Counted, Indexed
from dictionary_learning.data.source import Source
from dictionary_learning.errors import ConfigError, DataError


def as_source(
    data: Any,
    *,
    text_column: str = "text",
    split: str = "train",
    streaming: bool = True,
    name: str | None = None,
    data_args: Mapping[str, Any] | None = None,
    max_examples: int | None = None,
    shuffle_seed: int | None = None,
    shuffle_buffer: int = 10_000,
    chat: Chat | None = None,
    dtype: str = "uint16",
    row_len: int = 2048,
    separator_id: int | None = None,
) -> Source:
    """Makes a `Source` of whatever holds documents.

    Args:
        data: a source; a list or iterator of strings, of token ids or of conversations; a path to a `.txt`, `.jsonl` (either may be
            compressed, `.zst` or `.gz`), `.json`, `.parquet`, `.bin` or `.npy` file, a folder or pattern of such files; a folder written
            by `save_to_disk` or `pretokenize`; the name of a data set on the Hugging Face hub; or a data set object.
        text_column: the column, or key, that holds the documents. Where no other is asked for and there is no `text`, `input_ids` or
            `tokens` is taken for token ids, and `messages`, `conversation` or `conversations` for conversations.
        split: the split of a data set given by name.
        streaming: whether a data set given by name is streamed.
        name: what to call it.
        data_args: further arguments of `datasets.load_dataset`.
        max_examples: takes so many documents and no more, after the shuffle.
        shuffle_seed: of a random order of the documents; None keeps theirs.
        shuffle_buffer: how many documents are shuffled among each other where they can only be read one after another.
        chat: how conversations become text.
        dtype: what a `.bin` file was written as: uint16, uint32, int32, int64 or uint8.
        row_len: tokens in a piece of a `.bin` or `.npy` file that is one long text.
        separator_id: the token id that ends each document of such a file.

    Raises:
        DataError: there is no such file or column, or nothing in it is text.
    """
    options = ReadOptions(text_column, chat, dtype, row_len, separator_id)
    source = _source(data, options, split, streaming, name, data_args or {})
    if shuffle_seed is not None:
        source = source.shuffled(shuffle_seed, shuffle_buffer)
    return source if max_examples is None else source.first(max_examples)


as_text_source = as_source
"""The name it was first known by."""


def file_source(path: str | os.PathLike, text_column: str = "text") -> Source:
    """Returns the documents of a file; see `as_source`.

    Raises:
        DataError: the file is not there, or an object lacks the column; raised when that object is reached.
    """
    return files_source(str(path), ReadOptions(text_column))


def _source(
    data: Any, options: ReadOptions, split: str, streaming: bool, name: str | None, data_args: Mapping[str, Any]
) -> Source:
    if isinstance(data, Source):
        return data
    if isinstance(data, (str, os.PathLike)):
        return _by_name(str(data), options, split, streaming, data_args)
    if isinstance(data, dict) and data and all(hasattr(part, "features") for part in data.values()):
        if split not in data:
            raise DataError(f"The data set has no split '{split}'; it has: {', '.join(map(str, data))}. Set split.")
        data = data[split]
    if hasattr(data, "column_names") and hasattr(data, "features"):
        from dictionary_learning.data.hub import dataset_source

        return dataset_source(data, options, name or "the data set")
    name = name or f"the {type(data).__name__}"
    if isinstance(data, torch.Tensor) or (isinstance(data, np.ndarray) and data.dtype.kind in "uif"):
        reader, tokenized = array_reader(np.asarray(data), name, options)
        return Source(reader, name, tokenized)
    if isinstance(data, Iterator):
        return Source(Counted(lambda: (as_document(d, options.chat) for d in data), repeatable=False), name)
    if isinstance(data, Sequence):
        shown = [as_document(d, options.chat) for d in data[:ROWS_LOOKED_AT]]
        reader = Indexed(lambda numbers: [as_document(data[n], options.chat) for n in numbers], range(len(data)))
        return Source(reader, name, tokenized_like(shown))
    if isinstance(data, Iterable):
        return Source(Counted(lambda: (as_document(d, options.chat) for d in data)), name)
    raise DataError(f"Got a {type(data).__name__} as data; give strings, a file, a data set, or the name of one.")


def _by_name(name: str, options: ReadOptions, split: str, streaming: bool, data_args: Mapping[str, Any]) -> Source:
    path = Path(name).expanduser()
    saved = any((path / mark).is_file() for mark in ("dataset_info.json", "dataset_dict.json"))
    holds_files = path.is_dir() and not saved
    if kind_of(path) or path.is_file() or is_pattern(name) or path.suffix in COMPRESSIONS or holds_files:
        if data_args or split != "train":
            raise ConfigError(
                f"Got split={split!r} and data_args={dict(data_args)} for '{name}', which is read as files. They are of data sets by name; "
                "leave them out."
            )
        return files_source(name, options)
    from dictionary_learning.data.hub import hub_source

    return hub_source(name, options, split=split, streaming=streaming, data_args=data_args)
