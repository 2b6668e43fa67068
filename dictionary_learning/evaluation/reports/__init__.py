"""Reports of an evaluation: files to read, and files to compute with.

A renderer turns a report, plain data as `evaluate_dictionaries` returns it, into the text of one
file. It omits what the report lacks, and shows a dash for what is missing or not finite.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from dictionary_learning._border import checked
from dictionary_learning._disk import write_atomically
from dictionary_learning.config import Registry
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation._reading import SUMS, read_report
from dictionary_learning.evaluation._records import Report
from dictionary_learning.evaluation.reports._as_markdown import render_markdown
from dictionary_learning.evaluation.reports._comparison import COMPARISONS
from dictionary_learning.evaluation.reports._links import path_from

__all__ = ["COMPARISONS", "RENDERERS", "Renderer", "add_link", "write_report"]

Renderer: TypeAlias = Callable[[Mapping[str, Any]], str]
"""Turns a report into the text of a file. The same report gives the same text."""

RENDERERS: Registry[Renderer] = Registry("report format")
RENDERERS.register("markdown")(render_markdown)

_SUFFIXES = {"markdown": "md"}
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
"""Characters that XML or UTF-8 cannot hold, or a terminal would obey."""


@checked(wraps=ConfigError)
def write_report(
    report: Mapping[str, Any], folder: str | os.PathLike, formats: Sequence[str] = ("json", "markdown", "html")
) -> dict[str, Path]:
    """Writes `report.json`, `report.md` and `report.html`; each is complete or absent at any time.

    With the JSON goes `report.safetensors`, if the report has its sums: by document, of which
    comparisons and merged reports are made, and the `density` and firing counts of each latent.

    Args:
        report: what `evaluate_dictionaries` returns.
        folder: the folder to write into; it is created if needed.
        formats: names in `RENDERERS`.

    Returns:
        The path of each format's file.

    Raises:
        ConfigError: the report is no mapping.
        UnknownNameError: a format is not known; nothing is written then.
    """
    cleaned = _mapped(report, lambda v: _UNPRINTABLE.sub("\ufffd", v) if isinstance(v, str) else v)
    texts = {name: RENDERERS[name](cleaned) for name in formats}
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    if "json" in texts and isinstance(report, Report) and report.measured is not None:
        write_atomically(target / SUMS, report.measured.save)
    for name, text in texts.items():
        paths[name] = target / f"report.{_SUFFIXES.get(name, name)}"
        write_atomically(paths[name], partial(Path.write_text, data=text, encoding="utf-8"))
    return paths


@checked()
def add_link(folder: str | os.PathLike, text: str, page: str | os.PathLike) -> None:
    """Adds a link to the report in a folder: to a page about the same dictionaries.

    Args:
        folder: The folder of the report, whose files are written again.
        text: What the page is.
        page: Its path.

    Raises:
        DataError: there is no report, or it is damaged.
    """
    target = Path(folder)
    report = read_report(target)
    links = {**(report.links or {}), text: path_from(target, Path(page))}
    there = [name for name in RENDERERS if (target / f"report.{_SUFFIXES.get(name, name)}").is_file()]
    write_report(dataclasses.replace(report, links=links), target, there)


@RENDERERS.register("html")
def render_html(report: Mapping[str, Any]) -> str:
    """Returns a page that needs no network and no other file."""
    # imports jinja2 and matplotlib
    from dictionary_learning.evaluation.reports._as_html import render_page

    return render_page(report)


@RENDERERS.register("json")
def render_json(report: Mapping[str, Any]) -> str:
    """Returns strict JSON: numbers in full precision, and null for those that are not finite."""
    finite = _mapped(report, lambda v: None if isinstance(v, float) and not math.isfinite(v) else v)
    return json.dumps(finite, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Returns plain data with a function applied to each key and value that holds no others."""
    if isinstance(value, Mapping):
        return {change(str(key)): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change) for item in value]
    return change(value)
