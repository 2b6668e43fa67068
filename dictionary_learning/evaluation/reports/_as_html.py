"""The report as a page that needs no network and no other file. Its script only sorts the table."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from dictionary_learning.evaluation.reports import _plots as plots
from dictionary_learning.evaluation.reports._formatting import (
    DASH,
    anything,
    count,
    decimal,
    duration,
    excluded,
    finite,
    headline,
    percent,
    signed,
    sites_of,
)
from dictionary_learning.evaluation.reports._metrics import (
    BASELINES,
    all_metrics,
    baselines,
    best_values,
    defined,
    shown_columns,
)
from dictionary_learning.evaluation.reports._svg import Look, looks

_PACKAGE = "dictionary_learning.evaluation.reports"


class Card(NamedTuple):
    """A number at the top of the page."""

    label: str
    value: str
    note: str


class Cell(NamedTuple):
    """A cell of the table of dictionaries; the table is sorted by `order`."""

    label: str
    text: str
    order: float | None
    is_best: bool


class Entry(NamedTuple):
    """A dictionary as the page shows it."""

    look: Look
    name: str
    kind: str
    cells: list[Cell]
    never_fired: str
    metrics: list[tuple[str, str]]
    settings: list[tuple[str, str]]


class Plot(NamedTuple):
    """A plot with its title and caption."""

    title: str
    note: str
    svg: str
    lists_never_fired: bool = False


def render_page(report: Mapping[str, Any]) -> str:
    """Returns the page; everything from the report is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,  # names come from files of strangers
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,  # a misspelt name in the template is an error, not an empty string
    )
    dictionaries = report.get("dictionaries") or []
    entries = _entries(dictionaries)
    return environment.get_template("template.html.j2").render(
        title=report.get("title") or "Evaluation",
        headline=headline(report),
        excluded=excluded(report),
        cards=_cards(report),
        columns=shown_columns(dictionaries),
        groups=[
            (site, [e for e, d in zip(entries, dictionaries, strict=True) if str(d["site"]) == site])
            for site in sites_of(dictionaries)
        ],
        entries=entries,
        has_best=bool(best_values(dictionaries)),
        plots=_plots(report),
        baselines=baselines(report),
        baseline_labels=["CE original", *BASELINES.values()],
        definitions=defined(dictionaries),
        seconds=[
            (str(name), duration(s)) for name, s in (report.get("seconds") or {}).items() if finite(s) is not None
        ],
        versions=[(str(package), str(version)) for package, version in (report.get("versions") or {}).items()],
    )


def _read(name: str) -> str:
    return resources.files(_PACKAGE).joinpath(name).read_text(encoding="utf-8")


def _cards(report: Mapping[str, Any]) -> list[Card]:
    dictionaries, data = report.get("dictionaries") or [], report.get("data") or {}
    cards = []
    if finite(data.get("n_tokens_scored")) is not None:
        read = f"of {count(data.get('n_tokens_read'))} read"
        cards.append(Card("Tokens scored", count(data["n_tokens_scored"]), read))
    if finite(report.get("ce_clean")) is not None:
        cards.append(Card("Original model", decimal(report["ce_clean"]), "CE, nats per token"))
    for label, key, note, write in (
        ("Variance unexplained", "fvu", "FVU, 0 is best", decimal),
        ("Cross-entropy increase", "ce_increase", "nats per token, 0 is best", signed),
        ("Alive", "frac_alive", "of the latents fired", percent),
    ):
        values = [v for d in dictionaries if (v := finite(d["metrics"].get(key))) is not None]
        if values:
            low, high = write(min(values)), write(max(values))
            cards.append(Card(label, low if low == high else f"{low} to {high}", note))
    return cards


def _entries(dictionaries: Sequence[Mapping[str, Any]]) -> list[Entry]:
    columns, best = shown_columns(dictionaries), best_values(dictionaries)
    entries = []
    for i, (d, look) in enumerate(zip(dictionaries, looks(dictionaries), strict=True)):
        values = [(column, d["metrics"].get(column.key)) for column in columns]
        cells = [Cell("width", count(d.get("dict_size")), finite(d.get("dict_size")), False)]
        cells += [Cell(c.label, c.write(v), finite(v), (i, c.key) in best) for c, v in values]
        kind = [str(d.get("class") or "")] + ([f"k {count(d['k'])}"] if finite(d.get("k")) is not None else [])
        built = [("site", d["site"]), ("class", d.get("class")), ("activation_dim", d.get("activation_dim"))]
        built += [("reads", d["reads"])] if "reads" in d else []
        built += [("dict_size", d.get("dict_size")), ("k", d.get("k"))]
        config = d.get("config") or {}
        settings = [(key, anything(v)) for key, v in built if key not in config] + [
            (k, anything(v)) for k, v in config.items()
        ]
        entries.append(
            Entry(look, str(d["name"]), ", ".join(filter(None, kind)), cells, _never_fired(d), all_metrics(d), settings)
        )
    return entries


def _never_fired(dictionary: Mapping[str, Any]) -> str:
    never = finite((dictionary.get("density") or {}).get("n_never_fired"))
    if never is None:
        return DASH
    width = finite(dictionary.get("dict_size"))
    return f"{count(never)} ({percent(never / width)})" if width else count(never)


def _plots(report: Mapping[str, Any]) -> list[Plot]:
    dictionaries = report.get("dictionaries") or []
    seen = looks(dictionaries)
    scatter, density = plots.scatter_plot(dictionaries, seen), plots.density_plot(dictionaries, seen)
    fvu, loss = (
        plots.training_plot(dictionaries, seen, key, label) for key, label in (("fvu", "FVU"), ("loss", "loss"))
    )
    drawn = [
        Plot("Fidelity against sparsity", "Lower and further left is better. The shape shows the site.", scatter),
        Plot("How often latents fire", "Never fired:", density, lists_never_fired=True),
        Plot("FVU during training", "On the batch of each logged step.", fvu),
        Plot("Loss during training", "Losses of different sites or classes cannot be compared.", loss),
    ]
    for site in sites_of(dictionaries):
        svg = plots.cross_entropy_plot(site, {**report, "dictionaries": dictionaries}, seen)
        drawn.append(Plot(f"Cross-entropy at {site}", "Shorter is better.", svg))
    return [plot._replace(svg=Markup(plot.svg)) for plot in drawn if plot.svg]  # the names in it are escaped
