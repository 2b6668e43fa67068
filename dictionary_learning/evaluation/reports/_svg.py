"""Matplotlib figures as SVG inside a page.

The page's style sheet decides the colors: the colors below become variables of that sheet, so that a plot follows the
page into dark mode. Elements of the i-th dictionary have the class "series" and the attribute data-of="i", by which the
page finds them. Text stays text.
"""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dictionary_learning.evaluation.reports._formatting import sites_of

INK, MUTED, RULE, CARD = "#1b1f24", "#5f6b7a", "#e3e5e8", "#fefefe"
_VARIABLES = {INK: "ink", MUTED: "muted", RULE: "rule", CARD: "card"}

COLORS = ("#0072b2", "#d55e00", "#009e73", "#b8508f", "#e69f00", "#56b4e9")
"""Distinct for every color vision (Okabe and Ito 2008); their variables are --series-0, --series-1, ..."""

_DASHES = ((), (4, 1.5), (1, 1))
_MARKERS = ("o", "s", "^", "D", "v", "P", "*", "X")
_GLYPHS = "\u25cf\u25a0\u25b2\u25c6\u25bc\u271a\u2605\u2716"

WIDTH = 6.5
"""Inches, at 72 points to the inch."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib; the page replaces it by its own
    "font.size": 11.5,
    "text.parse_math": False,  # a name may hold a dollar sign
    "text.color": INK,
    **{f"axes.spines.{side}": False for side in ("top", "right", "left")},
    "axes.edgecolor": RULE, "axes.labelcolor": MUTED, "axes.labelpad": 6, "axes.linewidth": 1.0,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "axes.unicode_minus": False,
    "grid.color": RULE, "grid.linewidth": 0.9,
    "xtick.color": RULE, "ytick.color": RULE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "ytick.major.size": 0.0, "xtick.minor.size": 0.0, "ytick.minor.size": 0.0,
    "lines.linewidth": 1.9, "lines.solid_joinstyle": "round",
}  # fmt: skip


class Look(NamedTuple):
    """How one dictionary is drawn in every plot."""

    number: int
    color: str
    dash: tuple[float, ...]
    marker: str
    glyph: str

    @property
    def line(self) -> Any:
        """Returns the line style for matplotlib."""
        return (0, self.dash) if self.dash else "solid"

    @property
    def variable(self) -> str:
        """Returns the style sheet's variable of the color."""
        return f"--series-{COLORS.index(self.color)}"

    @property
    def gid(self) -> str:
        """Returns the id that marks elements of this dictionary."""
        return f"series-{self.number}"


def looks(dictionaries: Sequence[Mapping[str, Any]]) -> list[Look]:
    """Returns a look for each dictionary: its own color and dash, and the marker of its site."""
    sites = sites_of(dictionaries)
    found = []
    for i, d in enumerate(dictionaries):
        place = sites.index(str(d["site"])) % len(_MARKERS)
        dash = _DASHES[i // len(COLORS) % len(_DASHES)]
        found.append(Look(i, COLORS[i % len(COLORS)], dash, _MARKERS[place], _GLYPHS[place]))
    return found


def draw(name: str, title: str, height: float, names: Sequence[str], paint: Callable[[Axes], None]) -> str:
    """Returns what `paint` draws, as an SVG element to stand in a page.

    Args:
        name: a name that no other drawing of the page has; the prefix of its ids.
        title: what a screen reader says.
        height: the height in inches.
        names: the dictionaries' names, shown when the pointer rests on their elements.
        paint: draws on the axes.
    """
    with style.context(["default", {**_STYLE, "svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the page's font has them
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        paint(axes)
        buffer = io.StringIO()
        # a date would make two renderings of one report differ
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    _adapt(root, name, names)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"role": "img", "aria-label": title})
    return ElementTree.tostring(root, encoding="unicode")


def title_of_axis(axes: Axes, text: str) -> None:
    """Writes the title of the vertical axis above it, horizontally."""
    axes.set_title(text, loc="left", color=MUTED, fontsize="medium", pad=10)


def _adapt(root: ElementTree.Element, name: str, names: Sequence[str]) -> None:
    """Makes element names plain, ids unique in the page, and colors variables of the style sheet."""
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # inside HTML, SVG has no namespace prefix
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        own = attributes.pop("id", "")
        if element.tag != "g" and own:  # nothing refers to groups
            attributes["id"] = f"{name}-{own}"
        elif own.startswith("series-"):
            attributes.update({"class": "series", "data-of": own.removeprefix("series-")})
            tip = ElementTree.Element("title")
            tip.text = names[int(attributes["data-of"])]
            element.insert(0, tip)
        if "href" in attributes:
            attributes["href"] = attributes["href"].replace("#", f"#{name}-")
        if "clip-path" in attributes:
            attributes["clip-path"] = attributes["clip-path"].replace("#", f"#{name}-")
        if "style" in attributes:
            attributes["style"] = _with_variables(attributes["style"])
        element.attrib.clear()
        element.attrib.update(attributes)
        element.tail = None  # line breaks between elements
        if element.tag not in ("text", "title"):
            element.text = None


def _with_variables(css: str) -> str:
    for color, variable in _VARIABLES.items():
        css = css.replace(color, f"var(--{variable}, {color})")
    for i, color in enumerate(COLORS):
        css = css.replace(color, f"var(--series-{i}, {color})")
    return css
