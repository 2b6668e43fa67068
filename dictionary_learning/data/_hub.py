"""Documents from Hugging Face data sets; the only module that imports `datasets`."""

import copy
import dataclasses
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dictionary_learning._progress import other_bars
from dictionary_learning.data._document import (
    RUNS_COLUMN,
    ReadOptions,
    SourceParts,
    Tokenized,
    infer_tokenized,
    read_record,
    require_column,
)
from dictionary_learning.data._reading import MapReader, Mark, Reader, SequentialReader, seal, unseal
from dictionary_learning.errors import DataError

METADATA = "pretokenized.json"
"""Stored beside data that `pretokenize` wrote; says how it was made."""
_SAELENS_METADATA = "sae_lens.json"  # what SAELens stores beside data that it tokenized
_N_INDICES = 1024  # numbers of a shuffled order that are hashed


@dataclasses.dataclass(frozen=True)
class StreamReader(Reader):
    """The rows of a data set that is streamed. The mark is the data set's own state.

    A data set that shuffles in a buffer does not store the buffer; it is read again up to the mark.
    """

    dataset: Any
    read_row: Callable[[Mapping[str, Any]], Any]

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        dataset = copy.deepcopy(self.dataset)  # has a position: two readings must not share it
        order_id = _order_id(dataset)
        mark = unseal(mark, order_id)
        if any("BufferShuffled" in type(part).__name__ for part in _parts(dataset)):
            reader = SequentialReader(lambda: map(self.read_row, dataset))
            yield from ((document, seal(n, order_id)) for document, n in reader.read(mark))
            return
        if mark is not None:
            dataset.load_state_dict(mark)
        for row in dataset:
            yield self.read_row(row), seal(dataset.state_dict(), order_id)


def _parts(part: Any) -> Iterator[Any]:
    """Yields a streamed data set and everything inside that it reads from."""
    yield part
    # private names: `datasets` has no public way to ask for the shuffle of a stream
    inner = [getattr(part, name, None) for name in ("_ex_iterable", "ex_iterable", "_shuffling")]
    for nested in (*inner, *(getattr(part, "ex_iterables", None) or ())):
        if nested is not None:
            yield from _parts(nested)


def _order_id(dataset: Any) -> str | None:
    """Returns a hash of the random order that a data set was brought into; None if it was not."""
    indices = getattr(dataset, "_indices", None)
    if indices is not None:
        column, step = indices.column(0), max(1, len(dataset) // _N_INDICES)
        order: list[Any] = [len(dataset), *(column[n].as_py() for n in range(0, len(dataset), step))]
    else:
        generators: list[Any] = [getattr(part, "generator", None) for part in _parts(dataset)]  # numpy's
        order = [str(g.bit_generator.state) for g in generators if hasattr(g, "bit_generator")]
    return hashlib.sha256(str(order).encode()).hexdigest()[:16] if order else None


def hub_reader(name: str, options: ReadOptions) -> SourceParts:
    """Returns what a source of a data set by name is made of.

    The name is that of a folder that `save_to_disk` wrote, or "user/name", or
    "user/name:configuration".
    """
    loaded = load_rows(name, options.split, options.streaming, **options.data_args)
    split = options.split
    full_name = name if split == "train" else f"{name}, split {split}"
    return dataset_reader(loaded, options, full_name, lambda: _metadata(name, options.data_args.get("revision")))


def load_rows(name: str, split: str = "train", streaming: bool = False, **data_args: Any) -> Any:
    """Returns a `datasets.Dataset` by name, or a stream of one.

    The name is that of a folder that `save_to_disk` wrote, a file of text, or "user/name", or
    "user/name:configuration".
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    folder = Path(name).expanduser()
    try:
        if folder.is_dir():
            loaded: Any = datasets.load_from_disk(str(folder))
            if isinstance(loaded, dict):
                loaded = loaded[split]
            elif split not in ("train", str(loaded.split)):
                raise DataError(f"The folder holds one data set, and no split '{split}'. Do not pass a split.")
        else:
            path, _, configuration = name.partition(":")
            if folder.is_file():  # of one's own
                kinds = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
                path, configuration = kinds.get(folder.suffix, "text"), ""
                data_args = {"data_files": str(folder), **data_args}
            arguments: dict[str, Any] = {"split": split, "streaming": streaming, **data_args}
            if "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters:
                arguments.setdefault("trust_remote_code", False)  # left out, it would ask standard input
            with other_bars(f"Loading {name}"):
                loaded = datasets.load_dataset(path, *filter(None, [configuration]), **arguments)
    except (OSError, ValueError, KeyError, TypeError, DatasetNotFoundError) as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        if not folder.is_dir() and os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes"):
            reason = "the hub is switched off by HF_HUB_OFFLINE"
        raise DataError(
            f"The data '{name}' (split '{split}') could not be loaded: {reason} Pass a .txt or .jsonl file, plain or "
            ".zst, a folder written by save_to_disk, or the name of a data set on the hub."
        ) from error
    return loaded


def dataset_reader(
    dataset: Any, options: ReadOptions, name: str, metadata: Callable[[], dict[str, Any]] = dict
) -> SourceParts:
    """Returns what a source of a `Dataset` or `IterableDataset` is made of.

    Its transform (`set_transform`) is applied; any other format is ignored. `metadata` returns what
    is known about the token ids, and is called only if there are any.
    """
    is_indexed = hasattr(dataset, "__len__")  # an IterableDataset has no length
    is_transformed = is_indexed and dataset.format["type"] == "custom" and len(dataset) > 0
    if is_transformed:
        names = list(dataset[0])  # a transform may add columns, and needs all of the original ones
    else:
        dataset = dataset.with_format(None)  # plain lists, whatever format the caller uses
        names = list(dataset.column_names or []) or list(next(iter(copy.deepcopy(dataset)), {}))
    column = require_column(names, options.text_column, name) if names else options.text_column
    columns = [c for c in (column, RUNS_COLUMN) if c in names]

    def read_row(row: Mapping[str, Any]) -> Any:
        return read_record(row, column, options.chat)

    def fetch(numbers: list[int]) -> list[Any]:
        rows = chosen[numbers]  # a dictionary of columns
        documents = [
            read_row(dict(zip(columns, values, strict=True)))
            for values in zip(*(rows[c] for c in columns), strict=True)
        ]
        if len(documents) != len(numbers):
            raise DataError(
                f"The transform of {name} returned {len(documents)} rows for {len(numbers)}; one for each is needed. "
                "Use dataset.map for a transform that changes the number of rows."
            )
        return documents

    if is_indexed:
        chosen = dataset.select_columns(columns) if columns and not is_transformed else dataset
        reader: Reader = MapReader(fetch, range(len(dataset)), order_id=_order_id(dataset))
    else:
        reader = StreamReader(dataset, read_row)
    # text is not fetched to find out that it holds no token ids
    feature = None if is_transformed else (dataset.features or {}).get(column)
    if feature is not None and getattr(feature, "dtype", None) in ("string", "large_string"):
        return reader, name, None
    seen = infer_tokenized(reader)
    if seen is None:
        return reader, name, None
    known = metadata()  # ours or SAELens's
    tokenized = Tokenized(
        tokenizer=known.get("tokenizer", known.get("tokenizer_name")),
        fingerprint=known.get("fingerprint"),
        ctx_len=known.get("ctx_len", known.get("context_size", seen.ctx_len)),
        first_id=seen.first_id,
        packing=known.get("packing"),
    )
    return reader, name, tokenized


def _metadata(name: str, revision: str | None) -> dict[str, Any]:
    """Returns the metadata file beside a data set; empty if there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    folder, repository = Path(name).expanduser(), name.partition(":")[0]
    for file in (METADATA, _SAELENS_METADATA):
        try:
            path: Any = folder / file
            if not folder.is_dir():
                path = hf_hub_download(repository, file, repo_type="dataset", revision=revision)
            return json.loads(Path(path).read_text(encoding="utf-8"))
        except (FileNotFoundError, EntryNotFoundError, HfHubHTTPError, ValueError):
            continue
    return {}


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path, columns: Mapping[str, str]) -> Any:
    """Writes rows with a list of numbers in each column; returns the data set."""
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


def save_with_metadata(dataset: Any, folder: Path, metadata: Mapping[str, Any], push: str | None) -> None:
    """Saves a data set and its metadata to a folder, and to a (private) hub repository if named."""
    from huggingface_hub import HfApi

    text = json.dumps(metadata, indent=2) + "\n"
    dataset.save_to_disk(str(folder))
    (folder / METADATA).write_text(text, encoding="utf-8")
    if push is not None:
        dataset.push_to_hub(push, private=True)
        HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo=METADATA, repo_id=push, repo_type="dataset")


def cache_folder() -> Path:
    """Returns the folder in which `datasets` stores what it made."""
    from datasets.config import HF_DATASETS_CACHE

    return Path(HF_DATASETS_CACHE)
