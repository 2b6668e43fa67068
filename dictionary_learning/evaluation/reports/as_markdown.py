"""The report as a text that reads well in a terminal and on GitHub."""

from collections.abc import Mapping, Sequence
from typing import Any

from dictionary_learning.evaluation.reports.base import RENDERERS
from dictionary_learning.evaluation.reports.formatting import count, decimal, duration, headline, left_out
from dictionary_learning.evaluation.reports.metrics import DETAILS, best_values, shown_columns


@RENDERERS.register("markdown")
def render_markdown(report: Mapping[str, Any]) -> str:
    """Returns a sentence on what was evaluated, the tables of figures, and what the figures mean."""
    parts = [f"# {_line(report.get('title') or 'Evaluation')}", _line(headline(report)), _line(left_out(report))]
    dictionaries = report.get("dictionaries") or []
    if dictionaries:
        parts += ["## Dictionaries", _dictionaries(dictionaries)]
        if best_values(dictionaries):
            parts.append("Bold: the best value among the dictionaries of the same site.")
    if report.get("ablation"):
        parts += [
            "## Baselines",
            "Cross-entropy in nats per token, and KL divergence from the untouched model.",
            _baselines(report),
        ]
    parts += ["## Metrics", _definitions(dictionaries)]
    if about := _about(report):
        parts += ["## Run", about]
    return "\n\n".join(part for part in parts if part) + "\n"


def _dictionaries(dictionaries: Sequence[Mapping[str, Any]]) -> str:
    columns, best = shown_columns(dictionaries), best_values(dictionaries)
    rows = []
    for i, d in enumerate(dictionaries):
        row = [_code(d["site"]), _code(d["name"]), count(d.get("dict_size"))]
        for column in columns:
            text = column.write(d["metrics"].get(column.key))
            row.append(f"**{text}**" if (i, column.key) in best else text)
        rows.append(row)
    return _table(["site", "name", "width", *(column.label for column in columns)], rows, n_left=2)


def _baselines(report: Mapping[str, Any]) -> str:
    header = ["site", "CE untouched", "CE mean-ablated", "CE zero-ablated", "KL mean-ablated", "KL zero-ablated"]
    keys = ("ce_mean", "ce_zero", "kl_mean", "kl_zero")
    clean = decimal(report.get("ce_clean"))
    rows = [[_code(site), clean, *(decimal(a.get(key)) for key in keys)] for site, a in report["ablation"].items()]
    return _table(header, rows, n_left=1)


def _definitions(dictionaries: Sequence[Mapping[str, Any]]) -> str:
    present = {key for d in dictionaries for key in d["metrics"]}
    lines = []
    for metric in (*shown_columns(dictionaries), *(m for m in DETAILS if m.key in present)):
        better = "" if metric.better == "neither" else f"; {metric.better} is better"
        lines.append(
            f"- **{metric.label}** (`{metric.key}`): {metric.meaning}. Range: {metric.span}{better}.".replace(
                "<x, x_hat>", "`<x, x_hat>`"
            )
        )
    return "\n".join(lines)


def _about(report: Mapping[str, Any]) -> str:
    lines = [f"- {name} took {duration(s)}" for name, s in (report.get("seconds") or {}).items()]
    lines += [f"- {_line(package)} {_line(version)}" for package, version in (report.get("versions") or {}).items()]
    return "\n".join(lines)


def _table(header: list[str], rows: list[list[str]], n_left: int) -> str:
    """Returns a table whose columns stand under each other; the first few are of words, the others of numbers."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        texts = [c.ljust(w) if i < n_left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(texts)} |"

    rule = [":" + "-" * (w - 1) if i < n_left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in rows)])


def _code(text: Any) -> str:
    """Returns a code span, in which nothing but a backtick and a table's bar has a meaning."""
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "\\|") + "`"


def _line(text: Any) -> str:
    return " ".join(str(text).split()).replace("<", "&lt;")
