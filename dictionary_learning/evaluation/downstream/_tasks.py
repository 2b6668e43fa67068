"""Labelled texts: what probes predict, from files, data sets and lists."""

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from dictionary_learning._border import checked, short
from dictionary_learning.errors import ConfigError, DataError, did_you_mean
from dictionary_learning.evaluation.downstream._files import SUFFIXES, rows_of_file

logger = logging.getLogger(__name__)

TEXT_COLUMNS = ("text", "prompt", "sentence", "content")
LABEL_COLUMNS = ("label", "labels", "target", "class")
MOST_CLASSES = 100
"""Classes of a task; more of them are numbers, or texts, and no labels."""
_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class ProbeTask:
    """Texts with a label each, and none twice."""

    name: str
    texts: tuple[str, ...]
    labels: tuple[int, ...]
    """The number of each text's class in `classes`."""
    classes: tuple[str, ...]


TaskLike: TypeAlias = (
    str | os.PathLike | ProbeTask | Mapping[str, Any] | Iterable[Any]
)  # also a `datasets.Dataset`, which is an iterable of rows
"""A file or folder of labelled texts, a data set, (text, label) pairs, columns or tasks by name, or
several of these."""


@checked()
def as_probe_tasks(tasks: TaskLike, *, text: str | None = None, label: str | None = None) -> list[ProbeTask]:
    """Returns tasks of labelled texts.

    Labels are words, whole numbers or truths; `"1"` and 1 are the same label. Texts without a
    letter or sign are left out, and so are repeated ones: all copies, if their labels differ. Both
    are logged.

    Args:
        tasks: a `.csv`, `.tsv` or `.jsonl` file, also with `.gz` or `.zst`, or a folder of them; a
            `datasets.Dataset`; a list of (text, label) pairs or of rows with columns; a mapping of
            columns, or of tasks by name; or a list of several of these.
        text: the column of the texts; by default text, prompt, sentence or content.
        label: the column of the labels; by default label, labels, target or class.

    Raises:
        ConfigError: what is given is none of these.
        DataError: a file cannot be read, a column is missing, or a label is missing or no label.
    """
    found = _tasks(tasks, text, label, "task")
    if not found:
        raise DataError(f"Got no task in {short(tasks)}; give at least one file, data set or list of (text, label).")
    seen = Counter[str]()
    named: list[ProbeTask] = []
    for task in found:
        seen[task.name] += 1
        named.append(
            task if seen[task.name] == 1 else dataclasses.replace(task, name=f"{task.name} #{seen[task.name]}")
        )
    return named


def _tasks(given: Any, text: str | None, label: str | None, name: str) -> list[ProbeTask]:
    if isinstance(given, ProbeTask):
        return [given]
    if isinstance(given, (str, os.PathLike)):
        return _of_path(Path(given), text, label)
    if hasattr(given, "column_names") and hasattr(given, "features"):  # datasets.Dataset, without its import
        return [_of_dataset(given, text, label, name)]
    if isinstance(given, Mapping):
        columns = cast("Mapping[str, Any]", given)
        if _column(columns, text, TEXT_COLUMNS, None) is None:
            return [
                task for key, held in columns.items() for task in _named(_tasks(held, text, label, str(key)), str(key))
            ]
        return [_of_columns(columns, text, label, name)]
    if isinstance(given, Iterable):
        items = list(cast("Iterable[Any]", given))
        if items and not any(_is_task(item) for item in items):
            return [_of_rows(items, text, label, name)]
        return [task for item in items for task in _tasks(item, text, label, name)]
    raise ConfigError(f"Got tasks={short(given)}; give a file, a data set or a list of (text, label) pairs.")


def _is_task(item: Any) -> bool:
    """Returns whether an item of a list is a task by itself, and not an example."""
    if isinstance(item, Mapping):
        return any(isinstance(value, list) for value in cast("Mapping[Any, Any]", item).values())
    if isinstance(item, (list, tuple)):
        return bool(item) and isinstance(cast("Sequence[Any]", item)[0], (list, tuple, Mapping))
    return isinstance(item, (ProbeTask, str, os.PathLike)) or hasattr(item, "column_names")


def _named(tasks: list[ProbeTask], name: str) -> list[ProbeTask]:
    """Returns tasks under a name that was given to them."""
    return [dataclasses.replace(tasks[0], name=name)] if len(tasks) == 1 else tasks


def _of_path(path: Path, text: str | None, label: str | None) -> list[ProbeTask]:
    if path.is_dir():
        files = sorted(one for one in path.iterdir() if one.name.lower().endswith(SUFFIXES))
        return [task for file in files for task in _of_path(file, text, label)]
    name = path.name
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return [_of_rows(rows_of_file(path), text, label, name, f"'{path}'")]


def _of_dataset(data: Any, text: str | None, label: str | None, name: str) -> ProbeTask:
    columns = list(data.column_names)
    text = _column(columns, text, TEXT_COLUMNS, "text")
    label = _column(columns, label, LABEL_COLUMNS, "label")
    names = getattr(data.features[label], "names", None) if data.features else None  # of a ClassLabel, -1 is no label
    labels = [
        names[n] if names and isinstance(n, int) and 0 <= n < len(names) else (None if names else n)
        for n in data[label]
    ]
    return make_task(name, list(data[text]), labels)


def _of_columns(columns: Mapping[str, Any], text: str | None, label: str | None, name: str) -> ProbeTask:
    texts = list(columns[cast(str, _column(columns, text, TEXT_COLUMNS, "text"))])
    labels = list(columns[cast(str, _column(columns, label, LABEL_COLUMNS, "label"))])
    if len(texts) != len(labels):
        raise DataError(f"Task '{name}' has {len(texts)} texts and {len(labels)} labels. Give one label for each text.")
    return make_task(name, texts, labels)


def _of_rows(rows: Sequence[Any], text: str | None, label: str | None, name: str, where: str = "") -> ProbeTask:
    if not rows:
        raise DataError(f"{where or f'Task {name!r}'} holds no example. Give texts with labels.")
    if not isinstance(rows[0], Mapping):
        for row in rows:
            if not isinstance(row, (list, tuple)) or len(row) != 2:
                raise ConfigError(f"Got {short(row)} in tasks; give (text, label) pairs, or rows with columns.")
        return make_task(name, [row[0] for row in rows], [row[1] for row in rows])
    text = _column(rows[0], text, TEXT_COLUMNS, where or "text")
    label = _column(rows[0], label, LABEL_COLUMNS, where or "label")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping) or text not in row or label not in row:
            raise DataError(
                f"Row {number} of {where or name} is {short(row)}; it needs the columns {text} and {label}."
            )
    return make_task(name, [row[text] for row in rows], [row[label] for row in rows])


def _column(columns: Iterable[str], given: str | None, known: Sequence[str], what: str | None) -> str | None:
    """Returns the column that is asked for, or the first known one; None if none need be there."""
    there = list(columns)
    found = next((one for one in (known if given is None else [given]) if one in there), None)
    if found is None and what is not None:
        option = "text" if known is TEXT_COLUMNS else "label"
        near = did_you_mean(given, map(str, there)) if given else ""
        wanted = " or ".join(known) if given is None else repr(given)
        raise DataError(
            f"There is no column {wanted} among {', '.join(map(str, there)) or 'none'}"
            f"{'' if what in ('text', 'label') else f' of {what}'}.{near} Give {option}= the name of a column."
        )
    return found


def make_task(name: str, texts: Sequence[Any], labels: Sequence[Any]) -> ProbeTask:
    """Returns a task, without empty and repeated texts.

    Raises:
        DataError: something is no text or no label, or there are too many classes.
    """
    kept: dict[str, str] = {}
    twice: set[str] = set()
    n_empty = n_repeated = 0
    for number, (text, label) in enumerate(zip(texts, labels, strict=True), 1):
        if not isinstance(text, str):
            raise DataError(f"Example {number} of task '{name}' has {short(text)} as text; give a string.")
        word = _label(label)
        if word is None:
            what = f"Example {number} of task '{name}' ({text[:_SHOWN]!r}) has the label {short(label)}"
            raise DataError(f"{what}; give a word, a whole number or a truth, or leave the example out.")
        if not text.strip():
            n_empty += 1
        elif text in kept:
            n_repeated += 1
            if kept[text] != word:
                twice.add(text)
        else:
            kept[text] = word
    n_both = len(twice)
    kept = {text: word for text, word in kept.items() if text not in twice}
    if n_empty or n_repeated:
        message = "Task '%s': left out %d empty texts, %d repeated ones, and %d texts with several labels."
        logger.warning(message, name, n_empty, n_repeated, n_both)
    classes = sorted(
        set(kept.values()), key=lambda word: (not _is_number(word), float(word) if _is_number(word) else 0, word)
    )
    if len(classes) > MOST_CLASSES:
        raise DataError(
            f"Task '{name}' has {len(classes)} different labels; up to {MOST_CLASSES} are classes. Give classes, or "
            "make them of the numbers."
        )
    return ProbeTask(name, tuple(kept), tuple(classes.index(word) for word in kept.values()), tuple(classes))


def _label(value: Any) -> str | None:
    """Returns a label as a word; None if it is missing or no label."""
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    if isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value == value and value.is_integer() else None
    word = value.strip() if isinstance(value, str) else ""
    if _is_number(word) and float(word).is_integer():
        return str(int(float(word)))  # a column with gaps has 1.0 for 1
    return None if word.lower() in ("", "nan", "none", "null", "<na>") else word


def _is_number(word: str) -> bool:
    try:
        return abs(float(word)) < float("inf")
    except ValueError:
        return False
