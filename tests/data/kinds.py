"""The same documents in every kind of place that a source can read."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import zstandard

from dictionary_learning.data import Source, TokenRow, as_source, mix

TEXTS = [f"document {n} " + "x" * (n % 5) for n in range(23)]
IDS = [[3 + n, 4 + n, *range(5, 5 + n % 4)] for n in range(23)]
FLAT = np.arange(3, 93, dtype=np.uint32) % 90
TALKS = [[{"role": "user", "content": text}, {"role": "assistant", "content": text.upper()}] for text in TEXTS]


def lines(path: Path | str, records: list[Any]) -> Path:
    """Writes a file of lines, compressed as its name says."""
    path = Path(path)
    rows = records if ".txt" in path.name else [json.dumps(record) for record in records]
    content = ("\n".join(rows) + "\n").encode()
    compress = {".zst": zstandard.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(content))
    return path


def parquet(path: Path, **columns: Any) -> Path:
    """Writes a Parquet file of small groups of rows."""
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=5)
    return path


def array(path: Path, values: np.ndarray) -> Path:
    """Writes an array."""
    np.save(path, values)
    return path


def _records() -> list[dict[str, str]]:
    return [{"text": text, "id": "a"} for text in TEXTS]


def _folder(place: Path) -> Path:
    for n in range(3):
        lines(place / f"part{n}.jsonl", _records()[n * 8 : (n + 1) * 8])
    return place


def _saved(place: Path) -> Path:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(place / "saved"))
    return place / "saved"


def _bin(place: Path, dtype: str) -> Path:
    FLAT.astype(dtype).tofile(place / "tokens.bin")
    return place / "tokens.bin"


def _stream() -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"text": TEXTS}).to_iterable_dataset(num_shards=3)


def _by_library(kind: str, path: Path) -> Source:
    return as_source(kind, data_args={"data_files": str(path)})


TEXT_KINDS: dict[str, Callable[[Path], Source]] = {
    "list": lambda place: as_source(TEXTS),
    "iterator": lambda place: as_source(iter(TEXTS)),
    "iterable": lambda place: as_source(dict.fromkeys(TEXTS).keys()),
    "txt": lambda place: as_source(lines(place / "a.txt", TEXTS)),
    "txt.zst": lambda place: as_source(lines(place / "a.txt.zst", TEXTS)),
    "txt.gz": lambda place: as_source(lines(place / "a.txt.gz", TEXTS)),
    "jsonl": lambda place: as_source(lines(place / "a.jsonl", _records())),
    "jsonl.zst": lambda place: as_source(lines(place / "a.jsonl.zst", _records())),
    "jsonl.gz": lambda place: as_source(lines(place / "a.jsonl.gz", _records())),
    "parquet": lambda place: as_source(parquet(place / "a.parquet", text=TEXTS)),
    "folder of files": lambda place: as_source(_folder(place)),
    "pattern": lambda place: as_source(f"{_folder(place)}/part*.jsonl"),
    "data set": lambda place: as_source(datasets.Dataset.from_dict({"text": TEXTS, "id": TEXTS})),
    "streamed data set": lambda place: as_source(_stream()),
    "saved data set": lambda place: as_source(_saved(place)),
    "streamed jsonl": lambda place: _by_library("json", lines(place / "a.jsonl", _records())),
    "streamed parquet": lambda place: _by_library("parquet", parquet(place / "a.parquet", text=TEXTS)),
}
"""Sources that give `TEXTS`."""


def json_file(place: Path) -> Path:
    """Writes a JSON file: one list of records."""
    (place / "a.json").write_text(json.dumps(_records()))
    return place / "a.json"


TEXT_KINDS["json"] = lambda place: as_source(json_file(place))

TOKEN_KINDS: dict[str, Callable[[Path], Source]] = {
    "lists of ids": lambda place: as_source(IDS),
    "jsonl of ids": lambda place: as_source(lines(place / "a.jsonl", [{"tokens": ids} for ids in IDS])),
    "parquet of ids": lambda place: as_source(parquet(place / "a.parquet", input_ids=IDS)),
    "data set of ids": lambda place: as_source(datasets.Dataset.from_dict({"input_ids": IDS})),
    "streamed ids": lambda place: as_source(datasets.Dataset.from_dict({"tokens": IDS}).to_iterable_dataset()),
}
"""Sources that give `IDS`."""

LONG_KINDS: dict[str, Callable[[Path], Source]] = {
    "npy": lambda place: as_source(array(place / "a.npy", FLAT), row_len=7),
    "bin uint16": lambda place: as_source(_bin(place, "uint16"), row_len=7),
    "bin uint32": lambda place: as_source(_bin(place, "uint32"), dtype="uint32", row_len=7),
}
"""Sources of one long text: `FLAT`."""

MADE_KINDS: dict[str, Callable[[Path], Source]] = {
    "rows of npy": lambda place: as_source(array(place / "a.npy", FLAT.reshape(-1, 6))),
    "documents of npy": lambda place: as_source(array(place / "a.npy", FLAT % 11), separator_id=1),
    "conversations": lambda place: as_source(datasets.Dataset.from_dict({"messages": TALKS})),
    "held out": lambda place: TEXT_KINDS["jsonl"](place).hold_out(3)[1],
    "not held out": lambda place: TEXT_KINDS["data set"](place).hold_out(3)[0],
    "shuffled": lambda place: as_source(TEXTS, shuffle_seed=1),
    "shuffled in windows": lambda place: as_source(lines(place / "a.txt", TEXTS), shuffle_seed=1, shuffle_buffer=4),
    "shuffled and held out": lambda place: as_source(TEXTS, shuffle_seed=1).hold_out(3)[0],
    "shuffled folder": lambda place: as_source(_folder(place), shuffle_seed=1, shuffle_buffer=5),
    "shuffled by the library": lambda place: as_source(_stream().shuffle(seed=3, buffer_size=7)),
    "array": lambda place: as_source(FLAT.reshape(-1, 9)),
    "first": lambda place: as_source(lines(place / "a.txt", TEXTS), shuffle_seed=1, shuffle_buffer=4, max_examples=11),
    "mixture": lambda place: mix([TEXTS, TEXT_KINDS["txt.zst"](place), IDS], [3, 2, 1], exhausted="continue"),
    "restarted mixture": lambda place: mix([TEXTS[:3], as_source(TEXTS, shuffle_seed=2)], exhausted="restart"),
    "mixture held out": lambda place: mix([TEXTS, TEXT_KINDS["jsonl"](place)]).hold_out(4)[0],
}
"""Sources made of others, and those of token ids that are made otherwise."""

ALL_KINDS = {**TEXT_KINDS, **TOKEN_KINDS, **LONG_KINDS, **MADE_KINDS}


def plain(document: Any) -> Any:
    """Returns a document as something to compare."""
    return document.ids if isinstance(document, TokenRow) else document
