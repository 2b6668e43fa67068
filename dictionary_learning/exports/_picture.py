"""A picture of one latent: density, histogram, examples, and tokens that it promotes.

Tokens are of strangers: they are drawn as plain text, without mathematics, in a font of one width
that comes with matplotlib. Characters that it lacks are drawn as a box.
"""

import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from dictionary_learning._border import checked
from dictionary_learning._disk import write_atomically
from dictionary_learning.exports._facts import Bars, LatentFacts, LatentPage, Shown, page_of
from dictionary_learning.models import shown_name

_WIDTH, _ROW, _HEAD = 11.0, 0.24, 3.1  # inches
_DPI = 130
_COLUMNS = 126  # characters of an example
_STEP = 10 / _DPI  # inches of one: whole dots, to which the widths of characters are rounded
_N_TOP, _N_OTHER, _N_TOKENS = 8, 2, 10
_SIZE = 8.5  # points
_INK, _MUTED, _RULE = "#1b1f24", "#667079", "#d5dade"
_HOT, _COLD, _BAR = (0.93, 0.42, 0.10), (0.16, 0.44, 0.78), "#4878a8"
_BOX = "\u25a1"
_SHOWN_AS = {"\n": "\u21b5", "\t": "\u2192", "\r": "\u21b5", "\u00a0": " "}
_LONGEST = 22  # characters of a promoted token


@checked()
def write_latent_picture(facts: LatentFacts, latent: int, path: str | os.PathLike[str]) -> Path:
    """Writes a PNG of a latent, and returns its path."""
    (latent,) = facts.chosen([latent])
    page = page_of(facts, latent)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with style.context("default"):  # whatever the user has set, such as TeX
        figure = _drawn(facts, page)
        # without the version of matplotlib: the same facts make the same bytes
        write_atomically(file, lambda temporary: figure.savefig(temporary, format="png", metadata={"Software": None}))
    return file


def _drawn(facts: LatentFacts, page: LatentPage) -> Figure:
    rows = _rows(page)
    height = _HEAD + _ROW * (len(rows) + 1)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)  # no window, whatever the user's backend is
    _write_title(figure, facts, page, height)
    knows_logits = facts.effects is not None
    wide = 2.75 if knows_logits else _WIDTH / 2
    axes = _axes(figure, (0.8, height - 2.65, wide, 1.35), height)
    _draw_bars(axes, page.histogram, "activation, where active", "tokens (log scale)", page.maximum)
    if knows_logits:
        axes = _axes(figure, (4.25, height - 2.65, 2.4, 1.35), height)
        _draw_bars(axes, page.logits, "added to logits", "vocabulary (log scale)")
        _write_tokens(figure, 7.0, height, "promoted", _HOT, page.promoted[:_N_TOKENS])
        _write_tokens(figure, 9.0, height, "suppressed", _COLD, page.suppressed[:_N_TOKENS])
    _draw_examples(figure, rows, page.maximum, height)
    return figure


def drawable(text: str) -> str:
    """Returns a text of characters that the font has."""
    known = _characters()
    shown = (_SHOWN_AS.get(character, character) for character in text)
    return "".join(character if ord(character) in known else _BOX for character in shown)


@functools.cache
def _font() -> FontProperties:
    return FontProperties(family="DejaVu Sans Mono", size=_SIZE)


def example_font() -> FontProperties:
    """Returns the font of examples, a character of which is one step wide."""
    found = _font().copy()
    found.set_size(_STEP * 72 / 0.602)  # the font's width is 0.602 of its size
    return found


@functools.cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(_font())).get_charmap())


def _write(figure: Figure, x: float, y: float, text: str, **look: Any) -> None:
    """Writes text at a place in inches from the lower left."""
    width, height = figure.get_size_inches()
    look = {"fontproperties": _font(), "color": _INK, "va": "center", "parse_math": False, **look}
    figure.text(x / width, y / height, text, **look)


def _write_title(figure: Figure, facts: LatentFacts, page: LatentPage, height: float) -> None:
    title = f"{facts.name}, latent {page.latent}"
    place = ", ".join(part for part in (facts.model and shown_name(facts.model), facts.site) if part)
    large = _font().copy()
    large.set_size(13)
    _write(figure, 0.35, height - 0.3, drawable(title), fontproperties=large)
    figures = f"active on {page.density:.3%} of {facts.statistics.n_tokens:,} tokens"
    figures += f", mean {_three(page.mean)}, maximum {_three(page.maximum)}"
    _write(figure, 0.35, height - 0.58, drawable(f"{place}   {figures}".strip()), color=_MUTED)
    if page.explanations:
        said = page.explanations[0]
        scores = "".join(f"  {name} {score:.2f}" for name, score in said.scores.items())
        _write(figure, 0.35, height - 0.86, _cut(drawable(said.text), _COLUMNS + 12 - len(scores)) + scores)


def _axes(figure: Figure, box: tuple[float, float, float, float], height: float) -> Axes:
    left, bottom, width, tall = box
    axes = figure.add_axes((left / _WIDTH, bottom / height, width / _WIDTH, tall / height))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.tick_params(colors=_MUTED, labelsize=7.5, length=3)
    return axes


def _draw_bars(axes: Axes, bars: Bars, what: str, counted: str, maximum: float | None = None) -> None:
    axes.set_xlabel(what, fontsize=_SIZE, color=_MUTED)
    if not sum(bars.heights):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center", color=_MUTED, fontsize=_SIZE)
        return
    width = bars.values[1] - bars.values[0] if len(bars.values) > 1 else 1.0
    # a logarithm shows what is rare: large activations are
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 2 * max(bars.heights))
    axes.set_yticks(_powers_of_ten(max(bars.heights)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(counted, fontsize=_SIZE - 1, color=_MUTED)
    axes.bar(bars.values, bars.heights, width=0.92 * width, color=_BAR)
    axes.locator_params(axis="x", nbins=5)
    if maximum is not None:  # the range of the bins is a power of two
        axes.set_xlim(0, math.ceil(maximum / width) * width)


def _powers_of_ten(largest: int) -> list[int]:
    """Returns 0, 1 and at most three more powers of ten up to a count."""
    most = int(math.log10(largest))
    return [0, *(10**n for n in range(0, most + 1, max(math.ceil(most / 3), 1)))]


def _three(value: float) -> str:
    """Returns three digits of a number, zeros too, as 6.00 beside 6.12."""
    return f"{value:#.3g}".rstrip(".")


def _write_tokens(
    figure: Figure, left: float, height: float, title: str, color: Any, tokens: Sequence[tuple[str, float]]
) -> None:
    _write(figure, left, height - 1.2, title, color=_MUTED)
    for n, (token, value) in enumerate(tokens):
        y = height - 1.38 - 0.155 * n
        small = _font().copy()
        small.set_size(7.5)
        _write(figure, left, y, _cut(drawable(token), _LONGEST).replace(" ", "\u00b7"), fontproperties=small)
        _write(figure, left + 1.78, y, f"{value:+.2f}", color=color, ha="right", fontproperties=small)


def _rows(page: LatentPage) -> list[tuple[str, Shown | None]]:
    """Returns the lines below: headings, and examples of the groups."""
    rows: list[tuple[str, Shown | None]] = []
    for group in page.groups:
        name = "largest activations"
        if group.share is not None:
            name = f"{group.share:.0%} of active tokens, from {_three(group.low)} to {_three(group.high)}"
        rows.append((name, None))
        rows += [("", one) for one in group.examples[: _N_TOP if group.share is None else _N_OTHER]]
    return rows or [("never active", None)]


def _draw_examples(figure: Figure, rows: Sequence[tuple[str, Shown | None]], maximum: float, height: float) -> None:
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(0, height)
    wide = example_font()
    for n, (heading, example) in enumerate(rows):
        y = height - _HEAD - _ROW * (n + 0.4)
        if example is None:
            _write(figure, 0.35, y, heading, color=_MUTED)
            continue
        _write(figure, 0.85, y, _three(example.values[example.peak]), color=_MUTED, ha="right")
        for place, text, share in _pieces(example, maximum):
            if share > 0:
                box = ((0.95 + place * _STEP), y - 0.4 * _ROW)
                look = {"facecolor": (*_HOT, 0.12 + 0.68 * share), "edgecolor": "none"}
                axes.add_patch(Rectangle(box, len(text) * _STEP, 0.8 * _ROW, **look))
            _write(figure, 0.95 + place * _STEP, y, text, fontproperties=wide)


def _pieces(example: Shown, maximum: float) -> list[tuple[int, str, float]]:
    """Returns the column, the text and the share of the maximum of each token that fits a line."""
    texts = [_cut(drawable(token), _COLUMNS // 2) for token in example.tokens]
    before = sum(map(len, texts[: example.peak]))
    whole = sum(map(len, texts))
    start = max(min(before - 2 * _COLUMNS // 3, whole - _COLUMNS), 0)
    pieces: list[tuple[int, str, float]] = []
    column, share = -start, 0.0
    for text, value in zip(texts, example.values, strict=True):
        share = max(share, min(value / maximum, 1.0) if maximum > 0 else 0.0)
        if not text:
            continue  # a part of a character, which has the color of the strongest
        if column >= 0 and column + len(text) <= _COLUMNS:
            pieces.append((column, text, share))
        column, share = column + len(text), 0.0
    return pieces


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: max(longest - 1, 0)]}\u2026"
