"""Text from Hugging Face data sets; the only module that imports `datasets`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dictionary_learning.data.source import TextSource
from dictionary_learning.errors import DataError, did_you_mean


def hub_source(name: str, text_column: str = "text", split: str = "train", streaming: bool = True) -> TextSource:
    """Returns the documents of a data set on the hub, or of a folder that `save_to_disk` wrote.

    Args:
        name: the data set, as "user/name" or, with a configuration, "user/name:configuration".
        text_column: the column that holds the text.
        split: which split.
        streaming: read while downloading, instead of downloading first.

    Raises:
        DataError: the data set, the split or the column is not there.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        if Path(name).expanduser().is_dir():
            loaded: Any = datasets.load_from_disk(str(Path(name).expanduser()))
            loaded = loaded[split] if isinstance(loaded, dict) else loaded
        else:
            path, _, configuration = name.partition(":")
            loaded = datasets.load_dataset(path, configuration or None, split=split, streaming=streaming)
    except (OSError, ValueError, KeyError, DatasetNotFoundError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes")
        why = (
            "the hub is switched off by HF_HUB_OFFLINE"
            if offline
            else (str(error).strip().splitlines() or ["no reason given"])[0]
        )
        raise DataError(
            f"The data '{name}' (split '{split}') could not be loaded: {why} Give a .txt or .jsonl file, plain or .zst, "
            "a folder written by save_to_disk, or the name of a data set on the hub."
        ) from error
    return dataset_source(loaded, text_column, name)


def dataset_source(dataset: Any, text_column: str, name: str) -> TextSource:
    """Returns the documents of a data set object.

    Raises:
        DataError: it has no such column.
    """
    columns = list(dataset.column_names or [])
    if columns and text_column not in columns:
        raise DataError(
            f"{name} has no column '{text_column}'; it has: {', '.join(columns)}.{did_you_mean(text_column, columns)} "
            "Set text_column to the one that holds the text."
        )

    def documents() -> Iterator[str]:
        return (row[text_column] for row in dataset)

    return TextSource(documents, name)
