"""`as_source`: a `Source` from any object that holds text, conversations or token ids."""

import glob
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning._plain import to_plain
from dictionary_learning._types import TextLike
from dictionary_learning.data._decompressed import COMPRESSIONS
from dictionary_learning.data._document import (
    Chat,
    ReadOptions,
    SourceParts,
    infer_tokenized,
    read_item,
    require_column,
)
from dictionary_learning.data._files import files_reader, kind_of
from dictionary_learning.data._memory_map import array_reader
from dictionary_learning.data._once import OnceReader
from dictionary_learning.data._reading import MapReader, SequentialReader
from dictionary_learning.data._source import OnBadDocument, Source
from dictionary_learning.errors import ConfigError, DataError, check_own


@checked(wraps=DataError)
def as_source(
    data: TextLike,
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
    dtype: Literal["uint16", "uint32", "int32", "int64", "uint8"] = "uint16",
    row_len: int = 2048,
    separator_id: int | None = None,
    on_bad_document: OnBadDocument = "error",
) -> Source:
    """Returns a `Source` of the documents in any data object.

    Args:
        data: One of

            - a list, array, pandas Series or iterator of strings, of token ids (lists, tensors or
              arrays), of conversations, or of records (dicts) with a column of these; a DataFrame,
              a dict of columns, or what a tokenizer returns;
            - a tensor or array of token ids: rows (2-D), or one long text (1-D);
            - a path to a `.txt` or `.jsonl` file (plain, `.zst` or `.gz`), a `.json`, `.parquet`,
              `.bin` or `.npy` file, or a folder or pattern of such files;
            - a folder written by `save_to_disk` or `pretokenize`, or the name of a data set on the
              Hugging Face hub;
            - a `datasets.Dataset`, `IterableDataset` or `DatasetDict`;
            - a source, which keeps its own settings.
        text_column: The column or key that holds the documents. By default `text`, else token ids
            (`input_ids`, `tokens`), else conversations (`messages`, `conversation(s)`).
        split: The split of a data set given by name.
        streaming: Streams a data set given by name.
        name: The name of the source in configs and errors.
        data_args: Further arguments of `datasets.load_dataset`.
        max_examples: Uses only this many documents, after the shuffle.
        shuffle_seed: The seed of a random order of the documents; None keeps their order.
        shuffle_buffer: Documents shuffled with each other, if they cannot be fetched by number.
        chat: How conversations are rendered.
        dtype: The dtype of a `.bin` file: uint16, uint32, int32, int64 or uint8.
        row_len: Tokens read at once from a `.bin`, `.npy` or 1-D array that is one long text.
        separator_id: The token id that ends each document of such data.
        on_bad_document: What happens at a value that is not a document: a record without the
            column, null, text with a lone surrogate, a line that is not JSON or UTF-8. `error`
            raises, `skip` counts it in `Source.n_skipped`.

    Raises:
        DataError: There is no such file or column, or the data holds no text.
    """
    if isinstance(data, Source):
        given = {"text_column": text_column, "split": split, "streaming": streaming, "name": name, "dtype": dtype}
        given |= {
            "data_args": data_args and to_plain(data_args),
            "chat": chat,
            "row_len": row_len,
            "separator_id": separator_id,
        }
        defaults = inspect.signature(as_source).parameters
        check_own(data.name, {key: (value, defaults[key].default, None) for key, value in given.items()})
        check_own(data.name, {"on_bad_document": (on_bad_document, "error", data.on_bad_document)})
        source = data
    else:
        options = ReadOptions(text_column, split, streaming, data_args or {}, chat, dtype, row_len, separator_id)
        is_name = isinstance(data, (str, os.PathLike))
        parts = _read_name(str(data), options) if is_name else _read_object(data, options, name)
        source = Source(*parts, on_bad_document)
    if shuffle_seed is not None:
        source = source.shuffled(shuffle_seed, shuffle_buffer)
    return source if max_examples is None else source.first(max_examples)


as_text_source = as_source
"""An older name of `as_source`."""


@checked(wraps=DataError)
def file_source(path: str | os.PathLike[str], text_column: str = "text") -> Source:
    """Returns the documents of a file; see `as_source`."""
    return Source(*files_reader(str(path), ReadOptions(text_column)))


def _read_object(data: Any, options: ReadOptions, name: str | None) -> SourceParts:
    if isinstance(data, dict) and data and all(hasattr(part, "features") for part in data.values()):
        if options.split not in data:
            raise DataError(
                f"The data set has no split '{options.split}'; it has: {', '.join(map(str, data))}. Set split."
            )
        data = data[options.split]
    if hasattr(data, "column_names") and hasattr(data, "features"):
        from dictionary_learning.data._hub import dataset_reader

        return dataset_reader(data, options, name or "the data set")
    name, given = name or f"the {type(data).__name__}", data
    if isinstance(data, Mapping):
        data = _column(data, options, name)
    if isinstance(data, Tensor):
        data = data.detach().cpu().numpy()
    elif hasattr(data, "to_numpy"):  # of pandas or polars; a Series cannot be indexed by place
        table: Any = data
        if hasattr(table, "columns"):
            table = table[require_column(list(table.columns), options.text_column, name)]
        data = table.to_numpy()
    if isinstance(data, np.ndarray) and data.dtype.kind in "uif":  # floats are refused there
        reader, tokenized = array_reader(data, name, options)
        return reader, name, tokenized
    is_array, reading = isinstance(data, np.ndarray) and data.ndim == 1, (options.text_column, options.chat)
    if is_array or (isinstance(data, Sequence) and not isinstance(data, (bytes, bytearray))):
        reader = MapReader(lambda numbers: [read_item(data[n], *reading) for n in numbers], range(len(data)))
        return reader, name, infer_tokenized(reader)
    if isinstance(data, Iterable) and not isinstance(data, (bytes, bytearray, np.ndarray)):
        if isinstance(data, Iterator):
            return OnceReader(data, name, lambda value: read_item(value, *reading)), name, None
        return SequentialReader(lambda: (read_item(value, *reading) for value in data)), name, None
    dtype = getattr(given, "dtype", None)
    of = "" if dtype is None else f" of {dtype}"
    raise DataError(f"Got a {type(given).__name__}{of} as data; pass strings, a file, a data set, or the name of one.")


def _column(columns: Mapping[str, Any], options: ReadOptions, name: str) -> Any:
    """Returns the documents of a mapping from names to columns, as what a tokenizer returns."""
    column = require_column(list(columns), options.text_column, name)
    found = columns[column]
    lengths = {key: len(value) if hasattr(value, "__len__") else 0 for key, value in columns.items()}
    if isinstance(found, (str, bytes)) or len(set(lengths.values())) > 1:
        raise DataError(
            f"{name} is read as columns, and '{column}' is a {type(found).__name__} (lengths: {lengths}). Give lists "
            "of one length, with a document in each place."
        )
    if any(0 in row for row in columns.get("attention_mask", ())):
        raise DataError(f"{name} holds padding (attention_mask). Call the tokenizer without padding=True.")
    return found


def _read_name(name: str, options: ReadOptions) -> SourceParts:
    if not name.strip():
        raise DataError(f"Got {name!r} as data; pass strings, a file ('.' for those of this folder), or a data set.")
    path = Path(name).expanduser()
    is_stream = path.exists() or str(path).startswith(("/dev/stdin", "/dev/fd/"))
    if name == "-" or (is_stream and not path.is_file() and not path.is_dir()):
        raise DataError(
            f"'{name}' is no file that can be read again, which data must be: they are divided, and read once more for "
            "the evaluation. Write the text to a file first, such as text.jsonl."
        )
    # `save_to_disk` writes either file into its folder
    is_saved = any((path / mark).is_file() for mark in ("dataset_info.json", "dataset_dict.json"))
    holds_files = path.is_dir() and not is_saved
    if kind_of(path) or path.is_file() or glob.has_magic(name) or path.suffix in COMPRESSIONS or holds_files:
        if options.data_args or options.split != "train":
            raise ConfigError(
                f"Got split={options.split!r} and data_args={to_plain(options.data_args)} for '{name}', which is read "
                "as files. Both belong to data sets on the hub; do not pass them."
            )
        return files_reader(name, options)
    from dictionary_learning.data._hub import hub_reader

    return hub_reader(name, options)
