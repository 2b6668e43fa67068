"""Writes the report of a sweep: a page, tables, and all figures as JSON."""

import collections
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dictionary_learning._disk import write_atomically
from dictionary_learning._plain import counted
from dictionary_learning.models import shown_name
from dictionary_learning.sweeps._results import Row, Share, SweepResult, importance, summaries
from dictionary_learning.sweeps._tables import COLUMNS, SWEEP, Sheet, as_csv, as_latex, as_markdown

_VERSION = 1
_EXPLAINED = ("fvu", "ce_recovered_zero")
"""Figures whose variance over the grid is explained by settings."""


def write_sweep_report(result: SweepResult, described: Mapping[str, Any] | None = None) -> dict[str, Path]:
    """Writes `sweep.html`, `.md`, `.tex`, `.csv` and `results.json`; each is complete or absent.

    Args:
        result: The figures.
        described: What the sweep is, as `sweep.json` says it.
    """
    labels = {column.key: column.label for column in COLUMNS}
    shares = {labels[key]: importance(result.rows, key) for key in _EXPLAINED}
    title, about = _told(described or {}, [row.site for row in result.rows])
    title = title or f"Sweep: {result.folder.name}"
    return write_files(result.folder, result.rows, "sweep", title, about, shares, SWEEP)


def _told(described: Mapping[str, Any], sites: Sequence[str]) -> tuple[str, str]:
    """Returns the title, if the model is known, and a sentence on rows, text and sites."""
    data, evaluation = (described.get(key) or {} for key in ("data", "evaluation"))
    model = (data.get("model") or {}).get("name") if isinstance(data, Mapping) else None
    steps, rows = described.get("steps"), data.get("out_batch_size") if isinstance(data, Mapping) else None
    told = [f"{steps:,} steps" if steps else ""]
    told += [f" on {steps * rows:,} tokens" if steps and rows else ""]
    told += [f" of {data['source']}" if isinstance(data, Mapping) and data.get("source") else ""]
    if any(told):
        told += [f", at {' and '.join(dict.fromkeys(sites))}"]
        told += [f"; evaluated on {evaluation['n_tokens']:,} others" if evaluation.get("n_tokens") else "", "."]
    return f"Sweep on {shown_name(model)}" if model else "", "".join(told)


def write_files(
    folder: Path,
    rows: Sequence[Row],
    stem: str,
    title: str,
    about: str,
    shares: Mapping[str, Sequence[Share]],
    sheet: Sheet,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Path]:
    """Writes the files of a report.

    Args:
        folder: Where the dictionaries are.
        rows: Their figures.
        stem: The name of the page and the tables.
        title: The heading.
        about: A sentence for the head of the page.
        shares: What settings explain, by the label of the figure.
        sheet: The columns and plots.
        facts: What else `results.json` holds.
    """
    # imports jinja2 and matplotlib
    from dictionary_learning.sweeps._as_html import as_html

    found = summaries(rows)
    lost = collections.Counter(row.missing for row in rows if not row.figures)
    lead = f"{about} {counted(len(rows), 'dictionary', 'dictionaries')} of {counted(len(found), 'combination')}".strip()
    told = {"diverged": "diverged", "not scored": "cannot be scored"}
    lead += "".join(f"; {n} {told.get(why, why)}" for why, n in lost.items())
    lead += f", and {'has' if lost.total() == 1 else 'have'} no figures." if lost else "."
    document: dict[str, Any] = {
        "schema_version": _VERSION,
        **(facts or {}),
        "dictionaries": [{**row._asdict(), "folder": row.folder.relative_to(folder).as_posix()} for row in rows],
        "combinations": [{"name": one.name, **one._asdict()} for one in found],
        "importance": {label: [share._asdict() for share in each] for label, each in shares.items()},
    }
    texts = {
        "results.json": json.dumps(document, indent=2, default=str) + "\n",
        f"{stem}.md": as_markdown(title, found, shares, sheet),
        f"{stem}.tex": as_latex(found, sheet),
        f"{stem}.csv": as_csv(rows),
        f"{stem}.html": as_html(title, lead, found, shares, sheet),
    }
    paths = {name: folder / name for name in texts}
    for name, text in texts.items():
        write_atomically(paths[name], partial(Path.write_text, data=text, encoding="utf-8"))
    return paths
