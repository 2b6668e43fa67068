"""Texts with a label and an attribute that may be taken for it."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from dictionary_learning._border import short
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation.downstream._files import rows_of_file
from dictionary_learning.evaluation.downstream._splitting import Split, split_task
from dictionary_learning.evaluation.downstream._tasks import make_task

_JOIN = " / "

ExamplesLike: TypeAlias = str | os.PathLike | Iterable[Any]
"""A file with columns, rows with columns, or (text, label, attribute) triples."""


def paired(
    examples: Any, columns: tuple[str, str, str], *, n_train: int, n_test: int, seed: int
) -> tuple[str, Split, np.ndarray, np.ndarray]:
    """Returns the texts, as many of each pair, and which have the second label and attribute."""
    is_file = isinstance(examples, (str, os.PathLike))
    name = Path(examples).name.split(".")[0] if is_file else "examples"
    rows: list[Any] = rows_of_file(Path(examples)) if is_file else list(cast("Iterable[Any]", examples))
    triples: list[tuple[Any, Any, Any]] = []
    for number, row in enumerate(rows, 1):
        if isinstance(row, Mapping):
            missing = [column for column in columns if column not in row]
            if missing:
                have = ", ".join(map(str, row))
                raise DataError(f"Row {number} of {name} has no column '{missing[0]}', but {have}. Name the columns.")
            triples.append(tuple(row[column] for column in columns))  # pyright: ignore[reportArgumentType]
        elif isinstance(row, (list, tuple)) and len(row) == 3:
            triples.append(tuple(row))
        else:
            raise ConfigError(f"Got {short(row)} in examples; give (text, label, attribute), or rows with columns.")
    if not triples:
        raise DataError(f"There is no example in {name}. Give texts with a label and an attribute.")
    labels, attributes = (make_task(name, [t[0] for t in triples], [t[n] for t in triples]) for n in (1, 2))
    for what, task in (("label", labels), ("attribute", attributes)):
        if len(task.classes) != 2:
            raise DataError(f"The {what} has {len(task.classes)} classes in {name}; two are needed. Leave others out.")
    told = dict(zip(labels.texts, labels.labels, strict=True))
    pairs = [
        (text, f"{told[text]}{_JOIN}{one}")
        for text, one in zip(attributes.texts, attributes.labels, strict=True)
        if text in told
    ]
    task = make_task(name, [text for text, _ in pairs], [pair for _, pair in pairs])
    split = split_task(task, n_train=n_train, n_test=n_test, balanced=True, seed=seed)
    if len(split.classes) != 4:
        raise DataError(
            f"Only {len(split.classes)} of 4 pairs of label and attribute have four texts in {name}. Give more."
        )
    words = [task.classes[n].split(_JOIN) for n in split.labels]
    return name, split, np.array([w[0] == "1" for w in words]), np.array([w[1] == "1" for w in words])
