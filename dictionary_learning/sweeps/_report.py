"""Writes the report of a sweep: a page, tables, and all figures as JSON."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from dictionary_learning._disk import write_atomically
from dictionary_learning.sweeps._results import SweepResult, importance, summaries
from dictionary_learning.sweeps._tables import COLUMNS, as_csv, as_latex, as_markdown

_VERSION = 1
_EXPLAINED = ("fvu", "ce_recovered_zero")
"""Figures whose variance over the grid is explained by settings."""


def write_sweep_report(result: SweepResult) -> dict[str, Path]:
    """Writes `sweep.html`, `.md`, `.tex`, `.csv` and `results.json`; each is complete or absent."""
    # imports jinja2 and matplotlib
    from dictionary_learning.sweeps._as_html import as_html

    found = summaries(result.rows)
    labels = {column.key: column.label for column in COLUMNS}
    shares = {labels[key]: importance(result.rows, key) for key in _EXPLAINED}
    n_lost = sum(not row.figures for row in result.rows)
    title = f"Sweep: {result.folder.name}"
    lead = f"{len(result.rows)} dictionaries of {len(found)} combinations"
    lead += f"; {n_lost} diverged and have no figures." if n_lost else "."
    document: dict[str, Any] = {
        "schema_version": _VERSION,
        "dictionaries": [
            {**row._asdict(), "folder": row.folder.relative_to(result.folder).as_posix()} for row in result.rows
        ],
        "combinations": [{"name": one.name, **one._asdict()} for one in found],
        "importance": {label: [share._asdict() for share in each] for label, each in shares.items()},
    }
    texts = {
        "results.json": json.dumps(document, indent=2, default=str) + "\n",
        "sweep.md": as_markdown(title, found, shares),
        "sweep.tex": as_latex(found),
        "sweep.csv": as_csv(result.rows),
        "sweep.html": as_html(title, lead, found, shares),
    }
    paths = {name: result.folder / name for name in texts}
    for name, text in texts.items():
        write_atomically(paths[name], partial(Path.write_text, data=text, encoding="utf-8"))
    return paths
