"""The plots of a report: each an SVG element, or an empty string if there is nothing to draw."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from dictionary_learning.evaluation.reports._contents import (
    Entries,
    count,
    decimal,
    finite,
    shortened,
    signed,
    sites_of,
)
from dictionary_learning.evaluation.reports._svg import CARD, INK, MUTED, RULE, Look, draw, draw_error

_HEIGHT = 3.7  # inches
_DECADES = 4.0  # an increase too small for this many is drawn at the left end
_ROW = 0.47  # inches
_LABEL = 24  # letters of a name beside a point
_MAX_FILLED = 4  # histograms; more would only make gray
_MAX_POINTS = 400  # of a curve; more are not seen at this width
_WIDE_RANGE = 4.0  # a ratio of largest to smallest from which a logarithmic axis is the clearer one
_TICKS = {30.0: (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), 1e3: (1.0, 2.0, 5.0), math.inf: (1.0,)}
"""Ticks of a logarithmic axis within a factor of ten, by the largest ratio of its ends."""
_POINT: dict[str, Any] = {"markeredgecolor": CARD, "clip_on": False}


def training_plot(dictionaries: Entries, looks: Sequence[Look], key: str, label: str) -> str:
    """Draws one metric of the training history over tokens."""
    curves = {i: _curve(d.get("history") or [], key) for i, d in enumerate(dictionaries)}
    curves = {i: points for i, points in curves.items() if points}
    if not curves:
        return ""

    def paint(axes: Axes) -> None:
        for i, points in curves.items():
            tokens, values = zip(*points, strict=True)
            look, marker = looks[i], looks[i].marker if len(points) == 1 else None
            axes.plot(tokens, values, color=look.color, linestyle=look.line, marker=marker, gid=look.gid)
        _choose_scale(axes.yaxis, [value for points in curves.values() for _, value in points])
        _write_title(axes, label)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel("training tokens")
        axes.margins(x=0.01)

    return draw(f"training-{key}", f"{label} over training tokens", _HEIGHT, looks, paint)


def scatter_plot(dictionaries: Entries, looks: Sequence[Look]) -> str:
    """Draws FVU against L0, a point for each dictionary with its site's shape."""
    points: dict[int, tuple[float, float]] = {}
    for i, d in enumerate(dictionaries):
        x, y = (finite(d["metrics"].get(key)) for key in ("l0", "fvu"))
        if x is not None and y is not None:
            points[i] = (x, y)
    if len(points) < 2:  # the table shows as much of one point
        return ""

    def paint(axes: Axes) -> None:
        bars: dict[int, tuple[float, float]] = {}
        for i, (x, y) in points.items():
            look, errors = looks[i], dictionaries[i].get("errors") or {}
            wide, high = (finite((errors.get(key) or {}).get("standard_error")) or 0.0 for key in ("l0", "fvu"))
            bars[i] = (wide, high)
            draw_error(axes, (x, y), wide, high, look)
            axes.plot([x], [y], look.marker, markersize=10, color=look.color, gid=look.gid, **_POINT)
        xs, ys = zip(*points.values(), strict=True)
        if min(xs) > 0:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(LogLocator(base=2))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:,.4g}")
        axes.margins(x=0.18, y=0.16)  # room for names beside the points
        if 0 < max(xs) < _WIDE_RANGE * min(xs):  # at least two powers of two are within the axis
            axes.set_xlim(min(xs) / 2, max(xs) * 2)
        _choose_scale(axes.yaxis, list(ys))
        axes.grid(axis="x")
        axes.set_xlabel("L0, latents that fire per token")
        _write_title(axes, "FVU, variance unexplained")
        _label_points(axes, points, bars, looks)

    return draw("fvu-l0", "FVU against L0", _HEIGHT, looks, paint)


def density_plot(dictionaries: Entries, looks: Sequence[Look]) -> str:
    """Draws a histogram of how often latents fire, as shares of each dictionary's latents."""
    shown = {i: d["density"] for i, d in enumerate(dictionaries) if (d.get("density") or {}).get("counts")}
    if not shown:
        return ""

    def paint(axes: Axes) -> None:
        for i, density in shown.items():
            total = sum(density["counts"]) + density.get("n_never_fired", 0)
            shares = [c / max(total, 1) for c in density["counts"]]
            edges, look = density["log10_edges"], looks[i]
            axes.stairs(shares, edges, color=look.color, linestyle=look.line, linewidth=1.9, gid=look.gid)
            if len(shown) <= _MAX_FILLED:
                axes.stairs(shares, edges, color=look.color, fill=True, alpha=0.07, gid=look.gid)
        top = axes.get_ylim()[1]
        axes.set_ylim(0, top * 1.12)  # room above the bars for the label
        _mark_resolution(axes, dictionaries)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * 10**x:g}%")
        axes.yaxis.set_major_formatter(lambda y, _: "0" if y == 0 else f"{100 * y:.3g}%")
        axes.set_xlabel("share of tokens on which a latent fires")
        _write_title(axes, "share of latents")

    return draw("density", "Histogram of how often latents fire", _HEIGHT, looks, paint)


def cross_entropy_plot(site: str, report: Mapping[str, Any], looks: Sequence[Look]) -> str:
    """Draws the cross-entropies at a site above the original model's, on a logarithmic axis.

    Ablation costs a hundred times as much as a good dictionary, so no linear axis shows both. All
    sites of a report have the same axis.
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
        axes.set_ylim(len(rows) + 0.5, -0.65)  # downwards: the original model is in the first row
        axes.set_yticks([])
        _write_row(axes, 0, "original model", decimal(clean), None)
        for y, row in enumerate(rows, start=1):
            color, gid = (row.look.color, row.look.gid) if row.look else (MUTED, None)
            at = max(row.ce - clean, low)  # a dictionary may even lower the cross-entropy
            axes.plot([low, at], [y, y], color=color, linewidth=6, solid_capstyle="butt", alpha=0.85, gid=gid)
            axes.plot([at], [y], row.look.marker if row.look else "o", markersize=9, color=color, gid=gid, **_POINT)
            _write_row(axes, y, row.label, f"{decimal(row.ce)}  ({signed(row.ce - clean)})", gid)
        axes.grid(False, axis="y")
        axes.grid(axis="x")
        axes.xaxis.set_major_formatter("+{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("nats per token above the original model, logarithmic")

    height = 0.8 + _ROW * (len(rows) + 1)
    return draw(f"ce-{sites.index(site)}", f"Cross-entropy at {site}", height, looks, paint)


class _Row(NamedTuple):
    """A row of the plot of cross-entropies."""

    label: str
    ce: float
    look: Look | None


def _curve(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    points = [(finite(entry.get("tokens")), finite(entry.get(key))) for entry in history]
    known = [(x, y) for x, y in points if x is not None and y is not None]
    stride = max(1, math.ceil(len(known) / _MAX_POINTS))
    return known[:-1:stride] + known[-1:]  # the last point is always shown


def _choose_scale(axis: Axis, values: list[float]) -> None:
    low, high = min(values), max(values)
    if low > 0 and high / low > _WIDE_RANGE:
        axis.axes.set_yscale("log")
        subs = next(subs for widest, subs in _TICKS.items() if high / low <= widest)
        axis.set_major_locator(LogLocator(subs=subs, numticks=20))
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:,.6g}")


def _write_title(axes: Axes, text: str) -> None:
    """Writes the title of the vertical axis above it, horizontally."""
    scale = ", log scale" if axes.get_yscale() == "log" else ""
    axes.set_title(text + scale, loc="left", color=MUTED, fontsize="medium", pad=10)


def _label_points(
    axes: Axes,
    points: Mapping[int, tuple[float, float]],
    bars: Mapping[int, tuple[float, float]],
    looks: Sequence[Look],
) -> None:
    """Writes a name beside each point, unless it would cover something; the legend has all."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # gives the axes their size
    frame = axes.get_window_extent()
    centers = {i: axes.transData.transform(point).tolist() for i, point in points.items()}
    scale = figure.dpi / 72  # pixels per point
    taken = [Bbox.from_bounds(x - 8 * scale, y - 8 * scale, 16 * scale, 16 * scale) for x, y in centers.values()]
    # a name on an error bar would look struck through
    lines = {i: _bars_drawn(axes, point, bars[i]) for i, point in points.items()}
    taken += [box.padded(2 * scale) for each in lines.values() for box in each]
    for i, (x, y) in centers.items():
        across, up = (max(size) / 2 / scale for size in zip(*(box.size for box in lines[i]), strict=True))
        right, above = max(11.0, across + 6), max(15.0, up + 12)
        text = shortened(looks[i].name, limit=_LABEL)
        width, height = 6.4 * len(text) * scale, 13 * scale  # of a text of that many letters, about
        beside = ((right, 0.0, "left"), (-right, 0.0, "right"), (0.0, above, "center"), (0.0, -above, "center"))
        corners = [(dx, dy, align) for dy in (13.0, -13.0) for dx, align in ((9.0, "left"), (-9.0, "right"))]
        for dx, dy, align in (*beside, *corners):
            left = x + dx * scale - {"left": 0, "right": width, "center": width / 2}[align]
            box = Bbox.from_bounds(left, y + dy * scale - height / 2, width, height)
            is_inside = frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1)
            if is_inside and not any(map(box.fully_overlaps, taken)):
                taken.append(box)
                place = (points[i], (dx, dy))
                axes.annotate(text, *place, textcoords="offset points", ha=align, va="center", gid=looks[i].gid)
                break


def _bars_drawn(axes: Axes, point: tuple[float, float], bars: tuple[float, float]) -> list[Bbox]:
    """Returns where the error bars of a point are, in pixels: the horizontal one, and the other."""
    (x, y), (wide, high) = point, bars
    ends = ([(x - wide, y), (x + wide, y)], [(x, y - high), (x, y + high)])
    return [Bbox(axes.transData.transform(each)) for each in ends]


def _mark_resolution(axes: Axes, dictionaries: Entries) -> None:
    """Marks 1/n: on n tokens, a latent that fires less often cannot be seen to fire."""
    numbers = {finite(d["metrics"].get("n_tokens")) for d in dictionaries} - {None, 0.0}
    n = numbers.pop() if len(numbers) == 1 else None
    if n is None:
        return
    axes.axvline(-math.log10(n), color=MUTED, linestyle=(0, (2, 2)), linewidth=1.2)
    at = (-math.log10(n), axes.get_ylim()[1])
    axes.annotate(f"one token in {count(n)}", at, (6, -3), textcoords="offset points", va="top", color=MUTED)


def _rows(site: str, report: Mapping[str, Any], looks: Sequence[Look]) -> list[_Row]:
    """Returns the rows of a site: each dictionary, then its ablations."""
    ces = [finite(d["metrics"].get("ce_reconstructed")) for d in report["dictionaries"]]
    known = [(look, ce) for look, ce in zip(looks, ces, strict=True) if look.site == site and ce is not None]
    rows = [_Row(shortened(look.name), ce, look) for look, ce in known]
    ablation = (report.get("ablation") or {}).get(site, {})
    baselines = {kind: finite(ablation.get(f"ce_{kind}")) for kind in ("mean", "resample", "zero")}
    return rows + [_Row(f"{kind} ablation", ce, None) for kind, ce in baselines.items() if ce is not None]


def _write_row(axes: Axes, y: int, label: str, value: str, gid: str | None) -> None:
    across = axes.get_yaxis_transform()
    axes.text(0, y - 0.22, label, transform=across, va="bottom", color=INK, gid=gid)
    axes.text(1, y - 0.22, value, transform=across, va="bottom", ha="right", color=INK, gid=gid)
    if not gid and y == 0:
        axes.plot([0, 1], [y, y], transform=across, color=RULE, linewidth=1.2)
