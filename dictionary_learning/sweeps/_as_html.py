"""The report of a sweep as a page that needs no network and no other file."""

from collections.abc import Mapping, Sequence
from importlib.resources import files

import jinja2
from markupsafe import Markup

from dictionary_learning.sweeps._plots import looks_of, pareto_plot
from dictionary_learning.sweeps._results import Share, Summary
from dictionary_learning.sweeps._tables import MEANING_OF_SHARES, SWEEP, Sheet, cells, share_cells, shown_columns


def as_html(
    title: str, lead: str, found: Sequence[Summary], shares: Mapping[str, Sequence[Share]], sheet: Sheet = SWEEP
) -> str:
    """Returns the page; every name in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dictionary_learning.sweeps", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    head, rows = cells(found, sheet=sheet)
    columns = {column.key: column for column in shown_columns(found, sheet)}
    pairs = [(columns[x], columns[y]) for x, y in sheet.drawn if x in columns and y in columns]
    drawn = [svg for x, y in pairs if (svg := pareto_plot(found, x, y))]
    style = (files("dictionary_learning.evaluation.reports") / "report.css").read_text(encoding="utf-8")
    return environment.get_template("sweep.html.j2").render(
        title=title,
        lead=lead,
        note=sheet.note,
        style=Markup(style),
        head=head,
        rows=rows,
        columns=list(columns.values()),
        has_front=sheet.front is not None,
        looks=list(looks_of(found).values()) if found else [],
        several_sites=len({one.site for one in found}) > 1,
        plots=[Markup(svg) for svg in drawn],  # names in it are escaped
        shares=[(label, *share_cells(each)) for label, each in shares.items() if each],
        meaning=MEANING_OF_SHARES,
    )
