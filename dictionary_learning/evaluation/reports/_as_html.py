"""The report as a page that needs no network and no other file. Its script only sorts the table."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from dictionary_learning.evaluation.reports import _plots as plots
from dictionary_learning.evaluation.reports._contents import (
    BASELINES,
    DASH,
    TOKEN_GROUP_COLUMNS,
    TRAINING_COLUMNS,
    all_metrics,
    anything,
    baselines,
    best_values,
    count,
    decimal,
    defined,
    duration,
    error_of,
    excluded,
    finite,
    headline,
    percent,
    remarks,
    shown_columns,
    signed,
    sites_of,
    together,
    token_groups,
    training_of,
)
from dictionary_learning.evaluation.reports._conventional import meanings_of, note_of, package_of, rows_of
from dictionary_learning.evaluation.reports._downstream import downstream_tables
from dictionary_learning.evaluation.reports._links import links
from dictionary_learning.evaluation.reports._svg import Look, looks


class Plot(NamedTuple):
    """A plot with its title and caption."""

    title: str
    note: str
    svg: str
    lists_never_fired: bool = False


def render_page(report: Mapping[str, Any]) -> str:
    """Returns the page; everything from the report is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dictionary_learning.evaluation.reports", ""),
        autoescape=True,  # names come from files of strangers
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,  # a misspelt name in the template is an error, not an empty string
    )
    dictionaries = report.get("dictionaries") or []
    environment.globals.update(
        count=count,
        finite=finite,
        arrows={"lower": "↓", "higher": "↑"},
        kind=_kind,
        never_fired=_never_fired,
        settings=_settings,
        all_metrics=all_metrics,
        error_of=error_of,
        token_groups=token_groups,
        token_group_columns=TOKEN_GROUP_COLUMNS,
    )
    seen = looks(dictionaries)
    entries = list(zip(dictionaries, seen, strict=True))
    seconds: Mapping[str, Any] = report.get("seconds") or {}
    return environment.get_template("template.html.j2").render(
        title=report.get("title") or "Evaluation",
        headline=headline(report),
        excluded=excluded(report),
        links=links(report),
        cards=_cards(report),
        columns=shown_columns(dictionaries),
        groups=[(site, [e for e in entries if e[1].site == site]) for site in sites_of(dictionaries)],
        entries=entries,
        best=best_values(dictionaries),
        plots=_plots(report, seen),
        baselines=baselines(report),
        baseline_labels=["CE original", *BASELINES.values()],
        definitions=defined(dictionaries),
        together=together(report),
        package=package_of(report),
        conventional=rows_of(report),
        conventional_meanings=meanings_of(report),
        conventional_note=note_of(report),
        downstream=downstream_tables(report),
        remarks=remarks(report),
        seconds=[(name, duration(s)) for name, s in seconds.items() if finite(s) is not None],
        versions=report.get("versions") or {},
    )


def _cards(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (label, value, note) of each number at the top of the page."""
    dictionaries, data = report.get("dictionaries") or [], report.get("data") or {}
    cards: list[tuple[str, str, str]] = []
    if finite(data.get("n_tokens_scored")) is not None:
        cards.append(("Tokens scored", count(data["n_tokens_scored"]), f"of {count(data.get('n_tokens_read'))} read"))
    if finite(report.get("ce_clean")) is not None:
        cards.append(("Original model", decimal(report["ce_clean"]), "CE, nats per token"))
    for label, key, note, write in (
        ("Variance unexplained", "fvu", "FVU, 0 is best", decimal),
        ("Cross-entropy increase", "ce_increase", "nats per token, 0 is best", signed),
        ("Alive", "frac_alive", "of the latents fired", percent),
    ):
        values = [v for d in dictionaries if (v := finite(d["metrics"].get(key))) is not None]
        if values:
            low, high = write(min(values)), write(max(values))
            cards.append((label, low if low == high else f"{low} to {high}", note))
    return cards


def _kind(d: Mapping[str, Any]) -> str:
    parts = [str(d.get("class") or ""), "" if finite(d.get("k")) is None else f"k {count(d['k'])}"]
    return ", ".join(filter(None, parts))


def _never_fired(d: Mapping[str, Any]) -> str:
    width, never = finite(d.get("dict_size")), finite((d.get("density") or {}).get("n_never_fired"))
    return count(never) + ("" if never is None or not width else f" ({percent(never / width)})")


def _settings(d: Mapping[str, Any]) -> list[tuple[str, str]]:
    config = d.get("config") or {}
    built = ["site", "class", "activation_dim", *(["reads"] if "reads" in d else []), "dict_size", "k"]
    pairs = [(key, d.get(key)) for key in built if key not in config] + list(config.items())
    # what was logged last, which is no setting of the trainer
    known = {f"trained {name}": cell for name, cell in zip(TRAINING_COLUMNS[1:3], training_of(d)[1:3], strict=True)}
    return [(key, anything(value)) for key, value in pairs] + [pair for pair in known.items() if pair[1] != DASH]


def _plots(report: Mapping[str, Any], seen: Sequence[Look]) -> list[Plot]:
    dictionaries = report.get("dictionaries") or []
    scatter, density = plots.scatter_plot(dictionaries, seen), plots.density_plot(dictionaries, seen)
    fvu = plots.training_plot(dictionaries, seen, "fvu", "FVU")
    loss = plots.training_plot(dictionaries, seen, "loss", "loss")
    drawn = [
        Plot(
            "Fidelity against sparsity",
            "Lower and left is better. Shape: site. Bar: one standard error.",
            scatter,
        ),
        Plot("How often latents fire", "Never fired:", density, lists_never_fired=True),
        Plot("FVU during training", "On the batch of each logged step.", fvu),
        Plot("Loss during training", "Losses of different sites or classes cannot be compared.", loss),
    ]
    for site in sites_of(dictionaries):
        svg = plots.cross_entropy_plot(site, report, seen)
        drawn.append(Plot(f"Cross-entropy at {site}", "Shorter is better.", svg))
    return [plot._replace(svg=Markup(plot.svg)) for plot in drawn if plot.svg]  # the names in it are escaped
