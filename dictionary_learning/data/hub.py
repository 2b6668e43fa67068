"""Documents from Hugging Face data sets; the only module that imports `datasets`."""

import copy
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dictionary_learning.data.columns import (
    ROWS_LOOKED_AT,
    RUNS_COLUMN,
    ReadOptions,
    read_record,
    require_column,
    tokenized_like,
)
from dictionary_learning.data.reading import Counted, Indexed, Mark, Reader
from dictionary_learning.data.source import Source, Tokenized
from dictionary_learning.errors import DataError

METADATA = "pretokenized.json"
"""Lies beside data that `pretokenize` wrote, and says how."""
_SAELENS_METADATA = "sae_lens.json"
"""What SAELens puts beside data that it tokenized."""


@dataclasses.dataclass(frozen=True)
class Streamed(Reader):
    """The rows of a data set that is read while it comes in; it resumes where the data set itself can.

    One that shuffles in a buffer of its own forgets what is in it; that one is read again up to the place.

    Args:
        dataset: an `IterableDataset`.
        read_row: returns a row's document.
    """

    dataset: Any
    read_row: Callable[[Mapping[str, Any]], Any]

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents, with the state of the data set."""
        dataset = copy.deepcopy(self.dataset)  # its position is its own: two readings must not share one
        if _has_buffer(dataset):
            yield from Counted(lambda: map(self.read_row, dataset)).read(mark)
            return
        if mark is not None:
            dataset.load_state_dict(mark)
        for row in dataset:
            yield self.read_row(row), dataset.state_dict()


def _has_buffer(part: Any) -> bool:
    """Returns whether a streamed data set, or a part that it reads from, shuffles in a buffer."""
    if "BufferShuffled" in type(part).__name__:
        return True
    inner = [getattr(part, name, None) for name in ("_ex_iterable", "ex_iterable")]
    inner += getattr(part, "ex_iterables", None) or []
    return any(_has_buffer(p) for p in inner if p is not None)


def hub_source(
    name: str,
    options: ReadOptions,
    *,
    split: str = "train",
    streaming: bool = True,
    data_args: Mapping[str, Any] | None = None,
) -> Source:
    """Returns the documents of a data set on the hub, or of a folder that `save_to_disk` or `pretokenize` wrote.

    Args:
        name: the data set, as "user/name" or, with a configuration, "user/name:configuration".
        options: which column, and how it is read.
        split: which split.
        streaming: read while downloading, instead of downloading first.
        data_args: further arguments of `datasets.load_dataset`.

    Raises:
        DataError: the data set, the split or the column is not there.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            loaded: Any = datasets.load_from_disk(str(folder))
            loaded = loaded[split] if isinstance(loaded, dict) else _same_split(loaded, split)
        else:
            path, _, configuration = name.partition(":")
            arguments = {"split": split, "streaming": streaming, **(data_args or {})}
            loaded = datasets.load_dataset(path, *filter(None, [configuration]), **arguments)
    except (OSError, ValueError, KeyError, TypeError, DatasetNotFoundError) as error:
        why = _why(error, folder.is_dir())
        raise DataError(
            f"The data '{name}' (split '{split}') could not be loaded: {why} Give a .txt or .jsonl file, plain or .zst, "
            "a folder written by save_to_disk, or the name of a data set on the hub."
        ) from error
    named = name if split == "train" else f"{name}, split {split}"
    return dataset_source(loaded, options, named, lambda: _metadata(name, (data_args or {}).get("revision")))


def dataset_source(
    dataset: Any, options: ReadOptions, name: str, metadata: Callable[[], dict[str, Any]] = dict
) -> Source:
    """Returns the documents of a data set object.

    Args:
        dataset: a `Dataset` or `IterableDataset`.
        options: which column, and how it is read.
        name: what to call it.
        metadata: finds what is known of the token ids; asked only where there are any.

    Raises:
        DataError: it has no such column.
    """
    indexed = hasattr(dataset, "__len__")
    dataset = dataset.with_format(None)  # plain lists, whatever the caller would have
    names = list(dataset.column_names or []) or list(next(iter(copy.deepcopy(dataset)), {}))
    column = require_column(names, options.text_column, name) if names else options.text_column
    columns = [c for c in (column, RUNS_COLUMN) if c in names]

    def read_row(row: Mapping[str, Any]) -> Any:
        return read_record(row, column, options.chat)

    if not indexed:
        reader: Reader = Streamed(dataset, read_row)
    else:
        chosen = dataset.select_columns(columns) if columns else dataset

        def fetch(numbers: Sequence[int]) -> list[Any]:
            rows = chosen[list(numbers)]
            return [read_row(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]

        reader = Indexed(fetch, range(len(dataset)))
    shown = [document for document, _ in islice(reader.read(), ROWS_LOOKED_AT)] if _holds_lists(dataset, column) else []
    tokenized = tokenized_like(shown)
    if tokenized is not None:
        tokenized = _known(metadata(), tokenized)
    return Source(reader, name, tokenized)


def _same_split(dataset: Any, split: str) -> Any:
    if split not in ("train", str(dataset.split)):
        raise DataError(f"The folder holds one data set, and no split '{split}'. Leave split out.")
    return dataset


def _holds_lists(dataset: Any, column: str) -> bool:
    """Returns whether a column may hold token ids, so that it must be looked at; text is not fetched for it."""
    feature = (dataset.features or {}).get(column)
    return feature is None or getattr(feature, "dtype", None) not in ("string", "large_string")


def _known(metadata: Mapping[str, Any], seen: Tokenized) -> Tokenized:
    """Returns what the metadata says of the token ids, ours or SAELens's, and the rows where it says nothing."""
    return Tokenized(
        tokenizer=metadata.get("tokenizer", metadata.get("tokenizer_name")),
        fingerprint=metadata.get("fingerprint"),
        ctx_len=metadata.get("ctx_len", metadata.get("context_size", seen.ctx_len)),
        first_id=seen.first_id,
        packing=metadata.get("packing"),
    )


def _metadata(name: str, revision: str | None) -> dict[str, Any]:
    """Returns what lies beside the data set and says how it was tokenized; nothing where there is no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    folder = Path(name).expanduser()
    for file in (METADATA, _SAELENS_METADATA):
        try:
            if folder.is_dir():
                path = folder / file
            else:
                repository = name.partition(":")[0]
                path = Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
            return json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, EntryNotFoundError, HfHubHTTPError, ValueError):
            continue
    return {}


def _why(error: Exception, is_folder: bool) -> str:
    if not is_folder and os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes"):
        return "the hub is switched off by HF_HUB_OFFLINE"
    return (str(error).strip().splitlines() or ["no reason given"])[0]


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, columns: Mapping[str, str]) -> Any:
    """Writes rows into an Arrow file, and returns the data set in it.

    Args:
        rows: the rows, each with a list for every column.
        path: the file.
        columns: the columns, and the type of their numbers.
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter

    features = datasets.Features({name: datasets.Sequence(datasets.Value(kind)) for name, kind in columns.items()})
    with ArrowWriter(path=str(path), features=features) as writer:
        for row in rows:
            writer.write(dict(row))
        writer.finalize()
    return open_rows(path)


def open_rows(path: Path) -> Any:
    """Returns the data set in an Arrow file."""
    import datasets

    return datasets.Dataset.from_file(str(path))


def save_with_metadata(dataset: Any, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Saves a data set in a folder that `as_source` reads, with what is known of it."""
    dataset.save_to_disk(str(folder))
    (folder / METADATA).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def push_with_metadata(dataset: Any, repository: str, metadata: Mapping[str, Any]) -> None:
    """Puts a data set on the hub, private if it is new, with what is known of it."""
    from huggingface_hub import HfApi

    dataset.push_to_hub(repository, private=True)
    text = (json.dumps(metadata, indent=2) + "\n").encode()
    HfApi().upload_file(path_or_fileobj=text, path_in_repo=METADATA, repo_id=repository, repo_type="dataset")


def cache_folder() -> Path:
    """Returns the folder in which `datasets` keeps what it made."""
    from datasets.config import HF_DATASETS_CACHE

    return Path(HF_DATASETS_CACHE)
