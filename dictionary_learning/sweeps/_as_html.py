"""The report of a sweep as a page that needs no network and no other file."""

from collections.abc import Mapping, Sequence
from importlib.resources import files

import jinja2
from markupsafe import Markup

from dictionary_learning.sweeps._plots import looks_of, pareto_plot
from dictionary_learning.sweeps._results import Share, Summary
from dictionary_learning.sweeps._tables import MEANING_OF_SHARES, NOTE, cells, share_cells, shown_columns

_DRAWN = ("fvu", "ce_increase", "ce_recovered_zero")


def as_html(title: str, lead: str, found: Sequence[Summary], shares: Mapping[str, Sequence[Share]]) -> str:
    """Returns the page; every name in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dictionary_learning.sweeps", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    head, rows = cells(found)
    columns = shown_columns(found)
    drawn = [svg for column in columns if column.key in _DRAWN and (svg := pareto_plot(found, column))]
    style = (files("dictionary_learning.evaluation.reports") / "report.css").read_text(encoding="utf-8")
    return environment.get_template("sweep.html.j2").render(
        title=title,
        lead=lead,
        note=NOTE,
        style=Markup(style),
        head=head,
        rows=rows,
        columns=columns,
        looks=list(looks_of(found).values()) if found else [],
        several_sites=len({one.site for one in found}) > 1,
        plots=[Markup(svg) for svg in drawn],  # names in it are escaped
        shares=[(label, *share_cells(each)) for label, each in shares.items() if each],
        meaning=MEANING_OF_SHARES,
    )
