"""The plot of cross-entropies at a site."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from dictionary_learning.evaluation.reports.formatting import decimal, finite, names_of, shortened, signed, sites_of
from dictionary_learning.evaluation.reports.svg import CARD, INK, MUTED, RULE, Look, draw

_DECADES = 4.0  # an increase too small for this many is drawn at the left end
_ROW = 0.47  # inches


class Row(NamedTuple):
    """A line of the plot of cross-entropies."""

    label: str
    ce: float
    look: Look | None


def cross_entropy_plot(site: str, report: Mapping[str, Any], looks: Sequence[Look]) -> str:
    """Draws the cross-entropies at a site, by how far they lie above the untouched model's, on a logarithmic axis.

    Ablation costs a hundred times what a good dictionary does, so no linear axis shows both. The axis is the same
    for all sites of a report.
    """
    clean = finite(report.get("ce_clean"))
    rows = _rows(site, report, looks)
    if clean is None or not rows:
        return ""
    sites: list[str] = list(dict.fromkeys([*(report.get("ablation") or {}), *sites_of(report["dictionaries"])]))
    above = [row.ce - clean for s in sites for row in _rows(s, report, looks) if row.ce > clean]
    high = max(above, default=1.0) * 1.5
    low = 10 ** math.floor(math.log10(max(min(above, default=0.1) * 0.8, high / 10**_DECADES)))

    def paint(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(len(rows) + 0.5, -0.65)
        axes.set_yticks([])
        _write_row(axes, 0, "untouched model", decimal(clean), None)
        for y, row in enumerate(rows, start=1):
            color, gid = (row.look.color, row.look.gid) if row.look else (MUTED, None)
            at = max(row.ce - clean, low)
            axes.plot([low, at], [y, y], color=color, linewidth=6, solid_capstyle="butt", alpha=0.85, gid=gid)
            axes.plot(
                [at],
                [y],
                row.look.marker if row.look else "o",
                color=color,
                markersize=9,
                markeredgecolor=CARD,
                clip_on=False,
                gid=gid,
            )
            _write_row(axes, y, row.label, f"{decimal(row.ce)}  ({signed(row.ce - clean)})", gid)
        axes.grid(False, axis="y")
        axes.grid(axis="x")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"+{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("nats per token above the untouched model, logarithmic")

    name = f"ce-{sites.index(site)}"
    return draw(name, f"Cross-entropy at {site}", 0.8 + _ROW * (len(rows) + 1), names_of(report["dictionaries"]), paint)


def _rows(site: str, report: Mapping[str, Any], looks: Sequence[Look]) -> list[Row]:
    """Returns what is known of a site: each dictionary, then its ablation to the mean and to zero."""
    rows = []
    for d, look in zip(report["dictionaries"], looks, strict=True):
        ce = finite(d["metrics"].get("ce_reconstructed"))
        if str(d["site"]) == site and ce is not None:
            rows.append(Row(shortened(d["name"]), ce, look))
    ablation = (report.get("ablation") or {}).get(site, {})
    for key, label in (("ce_mean", "ablated to the mean"), ("ce_zero", "ablated to zero")):
        ce = finite(ablation.get(key))
        if ce is not None:
            rows.append(Row(label, ce, None))
    return rows


def _write_row(axes: Axes, y: int, label: str, value: str, gid: str | None) -> None:
    across = axes.get_yaxis_transform()
    axes.text(0, y - 0.22, label, transform=across, va="bottom", color=INK, gid=gid)
    axes.text(1, y - 0.22, value, transform=across, va="bottom", ha="right", color=INK, gid=gid)
    if not gid and y == 0:
        axes.plot([0, 1], [y, y], transform=across, color=RULE, linewidth=1.2)
