"""Matplotlib figures as SVG inside a page.

The page's style sheet decides the colors: the colors below become variables of that sheet, so that
a plot follows the page into dark mode. Elements of the i-th dictionary have the class "series" and
the attribute data-of="i", by which the page finds them. Text stays text.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dictionary_learning.evaluation.reports._contents import Entries, sites_of

INK, MUTED, RULE, CARD = "#1b1f24", "#5f6b7a", "#e3e5e8", "#fefefe"

COLORS = ("#0072b2", "#d55e00", "#009e73", "#b8508f", "#e69f00", "#56b4e9")
"""Distinct for every color vision (Okabe and Ito 2008)."""

_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", CARD: "--card"} | {
    color: f"--series-{i}" for i, color in enumerate(COLORS)
}
_DASHES = ((), (4, 1.5), (1, 1))
_MARKERS = tuple(zip("os^DvP*X", "\u25cf\u25a0\u25b2\u25c6\u25bc\u271a\u2605\u2716", strict=True))
"""Markers of matplotlib, and letters of the same shapes."""

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
    """How one dictionary is called and drawn in every plot."""

    number: int
    name: str
    site: str
    color: str
    dash: tuple[float, ...]
    marker: str
    glyph: str

    @property
    def line(self) -> Any:
        """The line style for matplotlib."""
        return (0, self.dash) if self.dash else "solid"

    @property
    def variable(self) -> str:
        """The style sheet's variable of the color."""
        return _VARIABLES[self.color]

    @property
    def gid(self) -> str:
        """The id that marks elements of this dictionary."""
        return f"series-{self.number}"


def looks(dictionaries: Entries) -> list[Look]:
    """Returns a look for each dictionary: its own color and dash, and the marker of its site."""
    sites, found = sites_of(dictionaries), list[Look]()
    for i, d in enumerate(dictionaries):
        site, dash = str(d["site"]), _DASHES[i // len(COLORS) % len(_DASHES)]
        shape = _MARKERS[sites.index(site) % len(_MARKERS)]
        found.append(Look(i, str(d.get("name", "")), site, COLORS[i % len(COLORS)], dash, *shape))
    return found


def draw(name: str, title: str, height: float, looks: Sequence[Look], paint: Callable[[Axes], None]) -> str:
    """Returns what `paint` draws, as an SVG element to stand in a page.

    Args:
        name: a name that no other drawing of the page has; the prefix of its ids.
        title: what a screen reader says.
        height: the height in inches.
        looks: the dictionaries; their names are shown when the pointer rests on their elements.
        paint: draws on the axes.
    """
    with style.context(["default", {**_STYLE, "svg.hashsalt": name}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the page's font has them
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(figure.subplots())
        buffer = io.StringIO()
        # a date would make two renderings of one report differ
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    _adapt(root, name, looks)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"role": "img", "aria-label": title})
    return ElementTree.tostring(root, encoding="unicode")


def draw_error(axes: Axes, point: tuple[float, float], wide: float, high: float, look: Look) -> None:
    """Draws a standard error to each side of a point; one of 0 is not seen."""
    x, y = point
    for xs, ys, error in (([x - wide, x + wide], [y, y], wide), ([x, x], [y - high, y + high], high)):
        if error:
            axes.plot(xs, ys, color=look.color, linewidth=1.2, gid=look.gid)


def _adapt(root: ElementTree.Element, name: str, looks: Sequence[Look]) -> None:
    """Makes element names plain, ids unique in the page, and colors variables of its style."""
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
            number = own.removeprefix("series-")
            attributes |= {"class": "series", "data-of": number}
            tip = ElementTree.Element("title")
            tip.text = looks[int(number)].name
            element.insert(0, tip)
        for key in attributes.keys() & {"href", "clip-path"}:
            attributes[key] = attributes[key].replace("#", f"#{name}-")
        for color, variable in _VARIABLES.items() if "style" in attributes else ():
            attributes["style"] = attributes["style"].replace(color, f"var({variable}, {color})")
        element.attrib.clear()
        element.attrib.update(attributes)
        element.tail = None  # line breaks between elements
        if element.tag not in ("text", "title"):
            element.text = None
