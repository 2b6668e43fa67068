"""A comparison as text, JSON, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any

from dictionary_learning.evaluation._compare import Comparison, Difference
from dictionary_learning.evaluation.reports._contents import DETAILS, TABLE, anything, count, decimal, signed

_LABELS = {metric.key: metric.label for metric in (*TABLE, *DETAILS)}
_LATEX = str.maketrans({
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "\n": " ",
})  # fmt: skip


def comparison_as_text(comparison: Comparison) -> str:
    """Returns tables for a terminal, what differs in the settings, and how to read it."""
    about = f"On {count(comparison.n_tokens_scored)} tokens of {count(comparison.n_documents)} documents of "
    parts = [f"{about}{_line(comparison.source)}."]
    for name in dict.fromkeys(one.name for one in comparison.differences):
        mine = [one for one in comparison.differences if one.name == name]
        parts.append(f"{_line(name)} minus {_line(mine[0].reference)}\n{_table(mine)}")
        parts.append(_settings(comparison.settings.get(name, {})))
    parts.append("\n".join(comparison.notes))
    return "\n\n".join(part for part in parts if part)


def comparison_as_json(comparison: Comparison) -> str:
    """Returns the whole comparison as strict JSON."""
    from dictionary_learning.evaluation.reports import render_json

    return render_json(comparison).rstrip("\n")


def comparison_as_csv(comparison: Comparison) -> str:
    """Returns a line for each difference, numbers in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("name", "reference", "metric", "value", "reference_value", "difference")
    ends = ("p_value", "p_adjusted", "excludes_zero", "is_real")
    writer.writerow([*names, "standard_error", "low", "high", *ends])
    for one in comparison.differences:
        bar = (one.error.standard_error, one.error.low, one.error.high)
        writer.writerow([*(one[key] for key in names), *bar, *(one[key] for key in ends)])
    return out.getvalue().rstrip("\n")


def comparison_as_latex(comparison: Comparison) -> str:
    """Returns a `tabular` with a row for each difference; a star marks those that are real."""
    lines = [r"\begin{tabular}{lllrrrc}", r"\hline"]
    lines.append(r"dictionary & reference & metric & reference & value & difference & 95\,\% interval \\ \hline")
    for one in comparison.differences:
        star = "^{*}" if one.is_real else ""
        cells = [_latex(one.name), _latex(one.reference), _latex(_LABELS.get(one.metric, one.metric))]
        cells += [_latex(decimal(one.reference_value)), _latex(decimal(one.value))]
        cells.append(rf"${signed(one.difference)} \pm {decimal(one.error.standard_error)}{star}$")
        cells.append(f"$[{signed(one.error.low)}, {signed(one.error.high)}]$")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"])


COMPARISONS: Mapping[str, Callable[[Comparison], str]] = {
    "text": comparison_as_text,
    "json": comparison_as_json,
    "csv": comparison_as_csv,
    "latex": comparison_as_latex,
}
"""How a comparison is written, by the name of the form."""


def _table(differences: list[Difference]) -> str:
    rows = [["metric", "reference", "value", "difference", "95 % interval", "real?"]]
    for one in differences:
        bar = one.error
        verdict = "yes" if one.is_real else "alone, not among all" if one.excludes_zero else "no"
        rows.append([
            _LABELS.get(one.metric, one.metric), decimal(one.reference_value), decimal(one.value),
            f"{signed(one.difference)} \u00b1 {decimal(bar.standard_error)}",
            f"{signed(bar.low)} to {signed(bar.high)}", verdict,
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _settings(changed: Mapping[str, tuple[Any, Any]]) -> str:
    lines = [f"  {_line(key)}: {_line(anything(one))} -> {_line(anything(two))}" for key, (one, two) in changed.items()]
    return "Settings that differ:\n" + "\n".join(lines) if lines else "No setting that is known differs."


def _latex(text: str) -> str:
    return text.translate(_LATEX)


def _line(text: Any) -> str:
    # the names come from files: no character of theirs may command the terminal
    return "".join(letter for letter in " ".join(str(text).split()) if letter.isprintable())
