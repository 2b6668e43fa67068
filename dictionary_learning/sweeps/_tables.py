"""The tables of a sweep's report, as Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dictionary_learning.sweeps._results import Row, Share, Summary, pareto

DASH = "\u2014"


class Column(NamedTuple):
    """A figure as the report shows it."""

    key: str
    label: str
    better: str
    form: str
    meaning: str


COLUMNS = (
    Column("l0", "L0", "", ".2f", "mean number of nonzero latents per token"),
    Column("fvu", "FVU", "lower", ".4f", "variance unexplained, sum |x - x_hat|^2 / sum |x - mean x|^2"),
    Column("ce_increase", "CE increase", "lower", ".4f", "cross-entropy with x_hat spliced in, minus the model's own"),
    Column(
        "ce_recovered_zero", "CE recovered (zero)", "higher", ".4f",
        "(zero-ablated CE - CE) / (zero-ablated CE - the model's own); none where zeroing does not raise the CE",
    ),
    Column("kl", "KL", "lower", ".4f", "KL divergence from the model's own predictions, nats per token"),
    Column("frac_alive", "alive", "higher", ".3f", "share of latents that fired on one of the held-out tokens"),
)  # fmt: skip
"""The figures of the table."""
NOTE = (
    "Figures of held-out data. After ± stands a standard error: of the mean over seeds where there are several, else "
    "of the evaluation where it gives one."
)


class Sheet(NamedTuple):
    """What a report shows: the columns of its table, and its plots."""

    columns: tuple[Column, ...]
    note: str
    front: str | None
    """The figure that decides, with L0, which combinations none beats; None for no such column."""
    drawn: tuple[tuple[str, str], ...]
    """Figures that are drawn, each against another: (across, upwards)."""


SWEEP = Sheet(COLUMNS, NOTE, "fvu", (("l0", "fvu"), ("l0", "ce_increase"), ("l0", "ce_recovered_zero")))
"""The report of a sweep."""
MEANING_OF_SHARES = (
    "The share of a figure's variance over this grid that one setting explains by itself: the sum of squares between "
    "its values over the total one (eta squared). What is missing to 100 % are interactions and seeds that are not "
    "varied. It says what mattered here: a wider range of a setting makes its share larger."
)


def shown_columns(found: Sequence[Summary], sheet: Sheet = SWEEP) -> list[Column]:
    """Returns the columns in which a combination has a figure."""
    return [column for column in sheet.columns if any(column.key in one.means for one in found)]


def factors_of(found: Sequence[Summary]) -> list[str]:
    """Returns the settings that vary, in order."""
    return list(dict.fromkeys(key for one in found for key in one.factors))


def cells(found: Sequence[Summary], plus_minus: str = " ± ", sheet: Sheet = SWEEP) -> tuple[list[str], list[list[str]]]:
    """Returns the head of the table, and its rows as text; last, if there are any, of marks."""
    factors, columns = factors_of(found), shown_columns(found, sheet)
    best = set[int]() if sheet.front is None else pareto(found, sheet.front)
    several = len({one.site for one in found}) > 1
    head = [
        "method",
        *(["site"] if several else []),
        *factors,
        "seeds",
        *(c.label for c in columns),
        "Pareto" if sheet.front else "remark",
    ]
    rows: list[list[str]] = []
    for i, one in enumerate(found):
        settings = [_text({**one.fixed, **one.factors}.get(key)) for key in factors]
        figures = [_figure(one, column, plus_minus) for column in columns]
        mark = "yes" if i in best else one.missing if not one.n else ""
        rows.append([one.method, *([one.site] if several else []), *settings, str(one.n), *figures, mark])
    if not sheet.front and not any(row[-1] for row in rows):
        return head[:-1], [row[:-1] for row in rows]
    return head, rows


def share_cells(shares: Sequence[Share]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the table of importance."""
    rows = [
        [share.scope or "all methods", share.factor, str(share.n_levels), f"{100 * share.share:.1f} %",
         "" if share.is_balanced else "unbalanced: shares overlap"]
        for share in shares
    ]  # fmt: skip
    head = ["within", "setting", "values", "variance explained", "remark"]
    return (head, rows) if any(row[-1] for row in rows) else (head[:-1], [row[:-1] for row in rows])


def as_markdown(
    title: str, found: Sequence[Summary], shares: Mapping[str, Sequence[Share]], sheet: Sheet = SWEEP
) -> str:
    """Returns the report as Markdown."""
    head, rows = cells(found, sheet=sheet)
    parts = [f"# {title}", sheet.note, markdown_table(head, rows)]
    parts.append(
        "\n".join(
            f"- {c.label}: {c.meaning}" + (f"; {c.better} is better" if c.better else "")
            for c in shown_columns(found, sheet)
        )
    )
    if sheet.front:
        parts.append("Pareto: no other combination at the site has both a lower L0 and a lower FVU.")
    if any(shares.values()):
        parts += ["## What mattered", MEANING_OF_SHARES]
    for label, each in shares.items():
        if each:
            parts += [f"### {label}", markdown_table(*share_cells(each))]
    return "\n\n".join(parts) + "\n"


def as_latex(found: Sequence[Summary], sheet: Sheet = SWEEP) -> str:
    """Returns the table for LaTeX, which needs the package booktabs."""
    head, rows = cells(found, "$\\,\\pm\\,$", sheet)
    n_figures, n_settings = len(shown_columns(found, sheet)), head.index("seeds") + 1
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{'l' * n_settings}{'r' * n_figures}{'l' * (len(head) - n_settings - n_figures)}}}",
        "\\toprule",
        " & ".join(map(_latex, head)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(_latex, row)) + " \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def as_csv(rows: Sequence[Row]) -> str:
    """Returns every dictionary with all figures and standard errors, a line each."""
    factors = list(dict.fromkeys(key for row in rows for key in row.factors))
    figures = list(dict.fromkeys(key for row in rows for key in row.figures))
    errors = list(dict.fromkeys(key for row in rows for key in row.errors))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["name", "method", "site", *factors, *figures, *(f"{key} standard error" for key in errors), "folder"]
    )
    for row in rows:
        values = [_text({**row.fixed, **row.factors}.get(key), "") for key in factors]
        values += [repr(row.figures[key]) if key in row.figures else "" for key in figures]
        values += [repr(row.errors[key]) if key in row.errors else "" for key in errors]
        folder = "/".join(row.folder.parts[-2:])
        writer.writerow([row.name, row.method, row.site, *values, folder])
    return text.getvalue()


def _figure(one: Summary, column: Column, plus_minus: str) -> str:
    value = one.means.get(column.key, math.nan)
    if not math.isfinite(value):
        return DASH
    error = format(one.errors.get(column.key) or 0.0, column.form)
    return f"{value:{column.form}}" + (f"{plus_minus}{error}" if float(error) else "")


def _text(value: Any, missing: str = DASH) -> str:
    if value is None:
        return missing
    return "+".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""

    def line(each: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in each) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", DASH: "---"}
_LATEX |= {sign: f"\\{sign}" for sign in "&%#_{}"}


def _latex(text: str) -> str:
    parts = text.split("$")  # those of the plus-minus sign are meant
    if len(parts) == 3:
        return f"{_latex(parts[0])}${parts[1]}${_latex(parts[2])}"
    return "".join(_LATEX.get(letter, "\\$" if letter == "$" else letter) for letter in text)
