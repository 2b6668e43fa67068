"""Reports of an evaluation, as files to read and files to compute with.

A renderer takes the report, a dictionary of plain data as `evaluate_dictionaries` returns it, and gives the text of one
file. What a report lacks, a renderer leaves out; a value that is missing or not finite is shown as a dash.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dictionary_learning.disk import write_atomically
from dictionary_learning.evaluation.reports import as_html, as_json, as_markdown
from dictionary_learning.evaluation.reports.base import RENDERERS, Renderer

__all__ = ["RENDERERS", "Renderer", "as_html", "as_json", "as_markdown", "write_report"]

_SUFFIXES = {"markdown": "md"}


def write_report(
    report: Mapping[str, Any], folder: str | os.PathLike, formats: Sequence[str] = ("json", "markdown", "html")
) -> dict[str, Path]:
    """Writes `report.json`, `report.md` and `report.html`; each is complete or not there at any moment.

    Args:
        report: what to write.
        folder: where to write it; it is made if need be.
        formats: names in `RENDERERS`.

    Returns:
        The path of the file in each format.

    Raises:
        UnknownNameError: there is no renderer of that name; nothing is written then.
    """
    texts = {name: RENDERERS[name](report) for name in formats}
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for name, text in texts.items():
        paths[name] = target / f"report.{_SUFFIXES.get(name, name)}"
        write_atomically(paths[name], partial(Path.write_text, data=text, encoding="utf-8"))
    return paths
