"""The plots of a sweep's report: a figure against L0, a line for each method."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

from dictionary_learning.evaluation.reports._svg import CARD, Look, draw, draw_error, looks
from dictionary_learning.sweeps._results import Summary, pareto
from dictionary_learning.sweeps._tables import Column

_HEIGHT = 4.2
"""Inches."""


def looks_of(found: Sequence[Summary]) -> dict[tuple[str, str], Look]:
    """Returns the color and marker of each method at each site."""
    series = list(dict.fromkeys((one.method, one.site) for one in found))
    seen = looks([{"name": method, "site": site} for method, site in series])
    return dict(zip(series, seen, strict=True))


def pareto_plot(found: Sequence[Summary], x_column: Column, column: Column) -> str:
    """Draws a figure against another one, of sweeps L0, with error bars.

    Against L0, points that are beaten by none of their site are filled; else all are.
    """
    seen, across = looks_of(found), x_column.key
    is_front = across == "l0"
    best = pareto(found, column.key, is_lower_better=column.better == "lower") if is_front else set(range(len(found)))
    series: dict[tuple[str, str], list[tuple[float, float, int]]] = {}
    for i, one in enumerate(found):
        if across in one.means and column.key in one.means:
            point = (one.means[across], one.means[column.key], i)
            series.setdefault((one.method, one.site), []).append(point)
    if not series:
        return ""

    def paint(axes: Axes) -> None:
        for key, points in series.items():
            look = seen[key]
            for x, y, i in points:
                filled = look.color if i in best else CARD
                style = {"color": look.color, "markerfacecolor": filled, "markersize": 8, "gid": look.gid}
                axes.plot([x], [y], look.marker, **style)
                wide, high = (found[i].errors.get(name, 0.0) for name in (across, column.key))
                draw_error(axes, (x, y), wide, high, look)
            front = sorted((x, y) for x, y, i in points if i in best)
            if is_front and len(front) > 1:
                xs, ys = zip(*front, strict=True)
                axes.plot(xs, ys, color=look.color, linestyle=look.line, linewidth=1.2, alpha=0.6, gid=look.gid)
        xs = [x for points in series.values() for x, _, _ in points]
        if is_front and min(xs) > 0 and max(xs) > min(xs):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(LogLocator(base=2))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:,.4g}")
        axes.grid(axis="x")
        better = f"{column.label}, {column.better} is better"
        axes.set_xlabel("L0, latents that fire per token" if is_front else f"{x_column.label}, {x_column.meaning}")
        axes.set_title(better, loc="left", fontsize="medium", pad=10)

    name = f"sweep-{column.key}" if is_front else f"sweep-{across}-{column.key}"
    return draw(name, f"{column.label} against {x_column.label}", _HEIGHT, list(seen.values()), paint)
