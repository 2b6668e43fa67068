"""The report as a text that reads well in a terminal and on GitHub."""

import re
from collections.abc import Mapping
from typing import Any

from dictionary_learning.evaluation.reports._contents import (
    BASELINES,
    DASH,
    TOKEN_GROUP_COLUMNS,
    TRAINING_COLUMNS,
    Entries,
    baselines,
    best_values,
    count,
    defined,
    duration,
    error_of,
    excluded,
    headline,
    remarks,
    shown_columns,
    together,
    token_groups,
    training_of,
)
from dictionary_learning.evaluation.reports._conventional import meanings_of, note_of, package_of, rows_of
from dictionary_learning.evaluation.reports._downstream import downstream_tables
from dictionary_learning.evaluation.reports._links import links

_MARKUP = re.compile(r"[^\w\s.,:;/=()-]|_")
"""What has a meaning in HTML or Markdown, and more."""
_BRACKETS = str.maketrans({"[": "\\[", "]": "\\]"})
"""Of links."""


def render_markdown(report: Mapping[str, Any]) -> str:
    """Returns a summary of the evaluation, the tables of metrics, and what the metrics mean."""
    parts = [f"# {_line(report.get('title') or 'Evaluation')}", _line(headline(report)), _line(excluded(report))]
    parts += [f"[{_line(link.text)}]({link.address})" for link in links(report)]
    dictionaries = report.get("dictionaries") or []
    if dictionaries:
        parts += ["## Dictionaries", _dictionaries(dictionaries)]
        if best_values(dictionaries):
            parts.append("Bold: the best value among the dictionaries of the same site, and all within its error.")
        parts += map(_line, remarks(report))
    trained = [(d, training_of(d)) for d in dictionaries]
    if any(set(cells[1:]) != {DASH} for _, cells in trained):
        rows = [[_code(d["name"]), *map(_line, cells)] for d, cells in trained]
        parts += ["## Training", _table(["dictionary", *TRAINING_COLUMNS], rows, n_left=1)]
    if package := package_of(report):
        rows = [[_code(r.dictionary), _code(r.key), _code(r.ours_name), r.theirs, r.ours] for r in rows_of(report)]
        parts += [f"## As {_line(package)} computes them", _line(note_of(report))]
        parts.append(_table(["dictionary", "figure there", "ours", _line(package), "our figure"], rows, n_left=3))
        parts.append("\n".join(f"- **{key}**: {_meaning(meaning)}." for key, meaning in meanings_of(report)))
    if report.get("together"):
        parts += ["## Together", "Dictionaries of several sites, spliced into the model at once.", _together(report)]
    for title, key in (("position", "by_position"), ("kind of token", "by_token_class")):
        if any(d.get(key) for d in dictionaries):
            parts += [f"## The error by {title}", _token_groups(dictionaries, key)]
    if report.get("ablation"):
        parts += ["## Baselines", "Cross-entropy in nats per token, and KL divergence from the original model."]
        rows = [[_code(site), *map(str, cells)] for site, cells in baselines(report)]
        parts.append(_table(["site", "CE original", *BASELINES.values()], rows, n_left=1))
    for table in downstream_tables(report):
        rows = [[_code(name), _line(what), *map(str, cells)] for name, what, cells in table.rows]
        parts += [f"## {_line(table.title)}", _line(table.note), _table(["name", "", *table.header], rows, n_left=2)]
    if dictionaries:
        parts += ["## Metrics", _definitions(dictionaries)]
    about = [f"- {_line(name)} took {duration(s)}" for name, s in (report.get("seconds") or {}).items()]
    about += [f"- {_line(package)} {_line(version)}" for package, version in (report.get("versions") or {}).items()]
    if about:
        parts += ["## Run", "\n".join(about)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _dictionaries(dictionaries: Entries) -> str:
    columns, best = shown_columns(dictionaries), best_values(dictionaries)
    rows = []
    for i, d in enumerate(dictionaries):
        row = [_code(d["site"]), _code(d["name"]), count(d.get("dict_size"))]
        for column in columns:
            text = column.write(d["metrics"].get(column.key))
            text = f"**{text}**" if (i, column.key) in best else text
            row.append(text + error_of(d, column))
        rows.append(row)
    return _table(["site", "name", "width", *(column.label for column in columns)], rows, n_left=2)


def _together(report: Mapping[str, Any]) -> str:
    rows = [[_line(" + ".join(map(str, names))), *map(str, cells)] for names, cells in together(report)]
    return _table(["dictionaries", "CE", "CE increase", "KL"], rows, n_left=1)


def _token_groups(dictionaries: Entries, key: str) -> str:
    rows = [
        [_code(d["name"]), _line(group["name"]), *map(str, cells)]
        for d in dictionaries
        for group, cells in token_groups(d, key)
    ]
    return _table(["dictionary", "tokens", *TOKEN_GROUP_COLUMNS], rows, n_left=2)


def _definitions(dictionaries: Entries) -> str:
    lines = []
    for metric in defined(dictionaries):
        better = "" if metric.better == "neither" else f"; {metric.better} is better"
        lines.append(
            f"- **{metric.label}** (`{metric.key}`): {_meaning(metric.meaning)}. Range: {metric.span}{better}."
        )
    return "\n".join(lines)


def _meaning(text: str) -> str:
    return text.replace("<x, x_hat>", "`<x, x_hat>`")  # or it would be read as a tag


def _table(header: list[str], rows: list[list[str]], n_left: int) -> str:
    """Returns a table with aligned columns; the first `n_left` hold words, the others numbers."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        texts = [c.ljust(w) if i < n_left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(texts)} |"

    rule = [":" + "-" * (w - 1) if i < n_left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def _code(text: Any) -> str:
    """Returns a code span, in which only a backtick and the bar of a table have a meaning."""
    words = " ".join(str(text).split())
    if not set("<>&") & set(words):
        return "`" + words.replace("`", "'").replace("|", "\\|") + "`"
    # not every reader of Markdown escapes tags in a code span, and none reads entities there
    return f"<code>{_MARKUP.sub(lambda found: f'&#{ord(found[0])};', words)}</code>"


def _line(text: Any) -> str:
    """Returns words as they are, without tags, images or links."""
    return " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").translate(_BRACKETS)
