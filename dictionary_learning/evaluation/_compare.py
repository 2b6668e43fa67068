"""Which differences between dictionaries are more than chance.

Dictionaries of one text are compared on the same resamples of its documents, so what makes a
document hard for all of them cancels. The interval of a difference is therefore narrower than those
of the two figures suggest.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dictionary_learning._border import checked
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation._bootstrap import (
    FEW_DOCUMENTS,
    LEVEL,
    ErrorBar,
    chance_of,
    document_weights,
    error_bar,
)
from dictionary_learning.evaluation._measured import flatten
from dictionary_learning.evaluation._record import Record
from dictionary_learning.evaluation._records import DictionaryReport, Report
from dictionary_learning.models import called

COMPARED = (
    "l0", "fvu", "cossim", "l2_ratio", "ce_increase", "ce_recovered_zero", "ce_recovered_mean", "ce_recovered_resample",
    "kl", "frac_alive",
)  # fmt: skip
"""The metrics that are compared by default, where both have them."""
_OF_ALL_TEXT = ("frac_alive", "n_alive")
"""Metrics that no document has by itself. What a document takes with it may be the same number of
latents for both dictionaries, which tells nothing of the error of their difference."""

_SIMILAR_L0 = 1.1
"""Ratio of L0 up to which differences of reconstruction are compared without a word on it."""
_CERTAIN = 1e-6
"""Share of a difference below which its error is only rounding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference(Record):
    """One metric of a dictionary minus that of the reference, on the same documents."""

    name: str
    reference: str
    metric: str
    value: float
    reference_value: float
    difference: float
    error: ErrorBar
    p_value: float
    """Probability of a difference as large if there were none: two-sided, by Student's t."""
    p_adjusted: float
    """The same if all differences of the comparison are looked at (Holm 1979)."""
    excludes_zero: bool
    """Whether the 95 % interval excludes 0: one in twenty does by chance."""
    is_real: bool
    """Whether p_adjusted is below 0.05, and the interval excludes 0."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """Dictionaries against the first one of their site."""

    HIDDEN: ClassVar[tuple[str, ...]] = ()

    source: str
    n_tokens_scored: int
    n_documents: int
    n_resamples: int
    n_differences: int
    """The number of differences that `p_adjusted` is adjusted for."""
    differences: Sequence[Difference]
    settings: Mapping[str, Mapping[str, tuple[Any, Any]]]
    """For each dictionary the settings that differ from the reference's: (the reference's, its)."""
    notes: Sequence[str]


@checked()
def compare_reports(
    reports: Sequence[Report], *, metrics: Sequence[str] = COMPARED, n_resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Returns the differences between dictionaries that were evaluated on the same text.

    The first dictionary of each site is the reference of the others there. Where no two are of one
    site, the first of all is the reference.

    Args:
        reports: one report of several dictionaries, or several reports.
        metrics: the names of the metrics.
        n_resamples: resamples of the documents.
        seed: of the resamples.

    Raises:
        ConfigError: there are fewer than two dictionaries, or a report has no sums.
        DataError: the reports are of other texts, tokens or models, or of too few documents.
    """
    entries = [(report, number) for report in reports for number in range(len(report.dictionaries))]
    if len(entries) < 2:
        raise ConfigError(f"Got {len(entries)} dictionaries to compare. Give at least two.")
    if any(report.measured is None for report in reports):
        raise ConfigError(
            "A report without report.safetensors beside it has no sums of documents, as those of older versions. "
            "Evaluate the dictionaries again."
        )
    for report in reports[1:]:
        _check_same(reports[0], report)
    measured = reports[0].measured
    assert measured is not None
    weights = document_weights(len(measured.documents), n_resamples, seed)
    if weights is None:
        raise DataError(
            f"The text has {len(measured.documents)} document and {n_resamples} resamples were asked for; a comparison "
            "needs at least two of each. Evaluate on a text of several documents."
        )
    found: list[Difference] = []
    settings: dict[str, Mapping[str, tuple[Any, Any]]] = {}
    names = _names(entries)
    for place, reference in _pairs(entries):
        (report, number), (base, base_number) = entries[place], entries[reference]
        found += _differences(
            names[place], names[reference], _figures(report, number, weights, metrics),
            _figures(base, base_number, weights, metrics), weights.shape[1],
        )  # fmt: skip
        settings[names[place]] = _changed(base.dictionaries[base_number], report.dictionaries[number])
    return Comparison(
        source=reports[0].data.source,
        n_tokens_scored=reports[0].data.n_tokens_scored,
        n_documents=measured.n_documents,
        n_resamples=n_resamples,
        n_differences=len(found),
        differences=_adjusted(found),
        settings=settings,
        notes=[*_notes(entries, len(found), measured.n_documents), *_left_out(entries, metrics, found)],
    )


def _check_same(first: Report, other: Report) -> None:
    """Checks that two reports are of the same tokens and model.

    Raises:
        DataError: they are not; the message says what differs.
    """
    what = {
        "text": "source", "context length": "ctx_len", "token filter": "filter", "number of documents": "n_documents",
        "tokens": "tokens_sha256", "tokens that count": "scored_sha256", "number of predictions": "n_tokens_predicted",
    }  # fmt: skip
    told = {name: (first.data.get(key), other.data.get(key)) for name, key in what.items()}
    told["model"] = (called(first.model), called(other.model))
    told["revision of the model"] = (first.model.get("revision"), other.model.get("revision"))
    changed = {name: pair for name, pair in told.items() if pair[0] != pair[1]}
    if told["tokens"][0] == told["tokens"][1]:
        changed.pop("text", None)  # one file may have two names
    if changed:
        shown = {name: (str(one), str(two)) for name, (one, two) in changed.items()}
        if "token filter" in shown:
            shown["token filter"] = _only_different(*shown["token filter"])
        told = "; ".join(f"{name}: {one} and {two}" for name, (one, two) in shown.items())
        raise DataError(
            f"The reports differ in {', '.join(changed)}, so differences between their figures are not those of the "
            f"dictionaries ({told}). {_advice(changed)}"
        )


def _only_different(one: str, two: str) -> tuple[str, str]:
    """Returns the rules that only one of two token filters has, as they describe themselves."""
    rules: list[list[str]] = []
    for described in (one, two):
        parts = re.split(r", (?=padding|the |positions |tokens )", described)
        ids = [re.fullmatch(r"the token ids? ([\d, ]+)", part) for part in parts]
        rules.append(
            [f"the token id {n}" for found in ids if found for n in found[1].split(", ")]
            + [part for part, found in zip(parts, ids, strict=True) if not found]
        )
    first, second = rules
    only = ([rule for rule in first if rule not in second], [rule for rule in second if rule not in first])
    return ", ".join(only[0]) or "nothing more", ", ".join(only[1]) or "nothing more"


def _advice(changed: Mapping[str, Any]) -> str:
    """Returns what makes reports comparable that differ in this."""
    if "model" in changed or "revision of the model" in changed:
        return "Compare dictionaries of one model."
    if "token filter" in changed:  # the command takes that of the training
        return (
            "Train the dictionaries with one filter, or evaluate them together with evaluate_dictionaries(..., "
            "token_filter=...)."
        )
    more = " --data DATA" * ("text" in changed) + " --ctx-len N" * ("context length" in changed)
    return f"Evaluate them together, and compare that report: dictionary-learning evaluate A B{more}"


def _pairs(entries: Sequence[tuple[Report, int]]) -> list[tuple[int, int]]:
    """Returns pairs of a dictionary and its reference."""
    sites = [report.dictionaries[number].site for report, number in entries]
    pairs = [(place, sites.index(site)) for place, site in enumerate(sites) if sites.index(site) != place]
    return pairs or [(place, 0) for place in range(1, len(entries))]


def _names(entries: Sequence[tuple[Report, int]]) -> list[str]:
    """Returns a name for each dictionary; a second "a" is "a #2"."""
    names: list[str] = []
    for report, number in entries:
        name = own = report.dictionaries[number].name
        count = 2
        while name in names:
            name, count = f"{own} #{count}", count + 1
        names.append(name)
    return names


def _figures(report: Report, number: int, weights: Any, metrics: Sequence[str]) -> dict[str, tuple[float, Any]]:
    """Returns (value, values of the resamples) of each metric that a dictionary has."""
    assert report.measured is not None
    whole = report.measured.figures(number)
    resampled = whole if weights is None else report.measured.figures(number, weights)
    return {name: (float(whole[name]), resampled[name]) for name in metrics if name in whole}


def _differences(
    name: str,
    reference: str,
    mine: Mapping[str, tuple[float, Any]],
    theirs: Mapping[str, tuple[float, Any]],
    n_groups: int,
) -> list[Difference]:
    found: list[Difference] = []
    for metric in (metric for metric in mine if metric in theirs):
        (value, resampled), (base, base_resampled) = mine[metric], theirs[metric]
        bar = error_bar(resampled - base_resampled, n_groups)
        difference = value - base
        if bar is None or (metric in _OF_ALL_TEXT and _is_unknown(bar, difference, n_groups)):
            continue
        p = chance_of(difference, bar.standard_error, n_groups)
        found.append(
            Difference(
                name=name,
                reference=reference,
                metric=metric,
                value=value,
                reference_value=base,
                difference=difference,
                error=bar,
                p_value=p,
                p_adjusted=p,
                excludes_zero=bar.low > 0 or bar.high < 0,
                is_real=False,
            )
        )
    return found


def _is_unknown(bar: ErrorBar, difference: float, n_groups: int) -> bool:
    """Returns whether documents cannot tell the error of a metric that none has by itself."""
    return n_groups < FEW_DOCUMENTS or bar.standard_error < _CERTAIN * abs(difference)


def _adjusted(found: Sequence[Difference]) -> list[Difference]:
    """Returns the differences with Holm's p-values: the smallest times their number, and so on."""
    order = sorted(range(len(found)), key=lambda i: found[i].p_value)
    adjusted, largest = dict[int, float](), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(found) - rank) * found[place].p_value))
        adjusted[place] = largest
    alpha = 1 - LEVEL
    return [
        dataclasses.replace(one, p_adjusted=adjusted[i], is_real=adjusted[i] < alpha and one.excludes_zero)
        for i, one in enumerate(found)
    ]


def _changed(base: DictionaryReport, other: DictionaryReport) -> dict[str, tuple[Any, Any]]:
    """Returns the settings in which two dictionaries differ."""
    plain = ("site", "reads", "class", "activation_dim", "dict_size", "k")
    one, two = ({**{key: entry.get(key) for key in plain}, **flatten(entry.config or {})} for entry in (base, other))
    keys = dict.fromkeys([*one, *two])
    return {key: (one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)}


def _other_sparsity(entries: Sequence[tuple[Report, int]]) -> list[str]:
    """Returns a sentence on dictionaries that use more or fewer latents than their reference."""
    names, told = _names(entries), list[str]()
    for pair in _pairs(entries):
        one, base = (entries[n][0].dictionaries[entries[n][1]].metrics.get("l0", 0.0) for n in pair)
        if max(one, base) > _SIMILAR_L0 * min(one, base):
            told.append(f"{names[pair[0]]!r} has L0 {one:.1f} and {names[pair[1]]!r} {base:.1f}")
    if not told:
        return []
    return [
        f"{'; '.join(told)}. More latents for a token reconstruct it better, with any method: such differences of FVU, "
        "cross-entropy and others are real, and none of the dictionaries' quality. Compare at a similar L0, or curves "
        "over L0 (docs/sweeps.md)."
    ]


def _left_out(entries: Sequence[tuple[Report, int]], metrics: Sequence[str], found: Sequence[Difference]) -> list[str]:
    compared = {one.metric for one in found}
    missing = [metric for metric in metrics if metric in _OF_ALL_TEXT and metric not in compared]
    known = [name for name in missing if all(name in _figures(report, i, None, [name]) for report, i in entries)]
    return [
        f"{name} is not compared: no document has it by itself, and the error of a difference cannot be told from "
        f"these. Read more text: at least {FEW_DOCUMENTS} documents."
        for name in known
    ]


def _notes(entries: Sequence[tuple[Report, int]], n_differences: int, n_documents: int) -> list[str]:
    notes = [
        f"The intervals hold 95 % of the time for each difference by itself. Of {n_differences} differences, some "
        "would seem real by chance; a difference is called real where it is so for all of them together (Holm's "
        "adjustment, 5 %).",
        "The error bars are over documents: of other text of the same kind, not of other seeds of training.",
    ]
    if n_documents < FEW_DOCUMENTS:
        notes.append(f"With {n_documents} documents, the error bars themselves are uncertain. Read more text.")
    notes += _other_sparsity(entries)
    sites = {report.dictionaries[number].site for report, number in entries}
    if len(sites) == len(entries):
        notes.append("The dictionaries are of different sites: their figures do not measure the same activations.")
    dtypes = {str(report.model.get("dtype")) for report, _ in entries}
    if len(dtypes) > 1:
        notes.append(f"The model ran in different dtypes: {', '.join(sorted(dtypes))}.")
    return notes
