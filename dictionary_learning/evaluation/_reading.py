"""Reports from files of every version, and several reports as one."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dictionary_learning._border import checked
from dictionary_learning._what_is import what_is
from dictionary_learning.errors import ConfigError, DataError
from dictionary_learning.evaluation._bootstrap import ErrorBar, document_weights
from dictionary_learning.evaluation._geometry import Geometry
from dictionary_learning.evaluation._measured import load_measured, merge_measured
from dictionary_learning.evaluation._records import (
    SCHEMA_VERSION,
    AblationReport,
    DataReport,
    DictionaryReport,
    Report,
    TogetherReport,
    TokenGroupReport,
)
from dictionary_learning.evaluation._summary import (
    bars,
    described_ablations,
    described_metrics,
    described_together,
)
from dictionary_learning.evaluation.downstream._from_json import downstream_of

REPORT, SUMS = "report.json", "report.safetensors"
"""Names of the files in the folder of a report."""


@checked()
def read_report(path: str | os.PathLike) -> Report:
    """Returns a report that `write_report` wrote, with the sums beside it if they are there.

    Args:
        path: `report.json`, or the folder that holds it; of this version or an older one.

    Raises:
        DataError: there is none, it is damaged, or a later version of this package wrote it.
    """
    file = Path(path)
    file = file / REPORT if file.is_dir() else file
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        version = document.get("schema_version", 1)
        if version > SCHEMA_VERSION:
            raise DataError(
                f"'{file}' has schema_version={version}, and this version of the package reads up to {SCHEMA_VERSION}. "
                "Install a newer one."
            )
        report = _report(document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        told = (not file.is_file() and what_is(path)) or "Give a report.json, or its folder."
        raise DataError(f"'{file}' is no report of an evaluation ({type(error).__name__}: {error}). {told}") from error
    sums = file.with_suffix(".safetensors")
    return dataclasses.replace(report, measured=load_measured(sums)) if sums.is_file() else report


@checked()
def merge_reports(reports: Sequence[Report]) -> Report:
    """Returns one report over the texts of several, as if they had been read in one evaluation.

    What is drawn from the text is each report's own: the mean and the tokens that ablations use.
    Figures of a convention are means over batches, and are left out.

    Args:
        reports: of the same dictionaries and model, on different documents, with their sums.

    Raises:
        ConfigError: there is none, or one has no sums.
        DataError: they are of other dictionaries, models or token filters, or of the same text.
    """
    if not reports:
        raise ConfigError("Got no report to merge. Give at least one.")
    merged = reports[0]
    for other in reports[1:]:
        merged = _merged(merged, other)
    return merged


def _merged(first: Report, second: Report) -> Report:
    if first.measured is None or second.measured is None:
        raise ConfigError(f"A report without its sums cannot be merged. Keep {SUMS} beside {REPORT}.")
    for what, one, other in (
        ("model", dict(first.model), dict(second.model)),
        ("token filter", first.data.filter, second.data.filter),
        ("context length", first.data.ctx_len, second.data.ctx_len),
    ):
        if one != other:
            raise DataError(f"The reports have another {what}: {one} and {other}. Merge parts of one evaluation.")
    if first.data.tokens_sha256 == second.data.tokens_sha256:
        raise DataError(f"Both reports are of the same tokens of {first.data.source}; they would count twice.")
    measured = merge_measured(first.measured, second.measured)
    n_resamples = max(first.data.n_resamples or 0, second.data.n_resamples or 0)
    weights = document_weights(len(measured.documents), n_resamples, seed=0)
    clean = measured.fidelity("clean")
    entries = [
        dataclasses.replace(entry, convention_metrics=None, **described_metrics(measured, number, weights))
        for number, entry in enumerate(first.dictionaries)
    ]
    return dataclasses.replace(
        first,
        data=_merged_data(first.data, second.data, len(measured.documents)),
        dictionaries=entries,
        ce_clean=clean.ce if clean.n else None,
        errors=bars({"ce_clean": clean.means(weights)["ce"]}, weights) if clean.n else None,
        ablation=described_ablations(measured, weights) if clean.n else None,
        together=described_together(measured, weights) or None,
        convention=None,
        downstream=None,  # of other texts
        links=None,  # they lie beside the first
        measured=measured,
    )


def _merged_data(first: DataReport, second: DataReport, n_groups: int) -> DataReport:
    counts = {
        name: first[name] + second[name]
        for name in ("n_tokens_read", "n_tokens_scored", "n_tokens_nonfinite", "n_tokens_predicted", "n_documents")
        if name in first and name in second
    }
    digests = {
        name: hashlib.sha256(f"{first[name]}{second[name]}".encode()).hexdigest()
        for name in ("tokens_sha256", "scored_sha256")
    }
    sources = dict.fromkeys((first.source, second.source))
    return dataclasses.replace(first, source=" and ".join(sources), n_groups=n_groups, **counts, **digests)


def _report(document: Mapping[str, Any]) -> Report:
    known: dict[str, Any] = _fields(Report, document)
    known["data"] = DataReport(
        **{"source": "", "n_tokens_read": 0, "n_tokens_scored": 0} | _fields(DataReport, document.get("data") or {})
    )
    known["model"] = document.get("model") or {}
    known["dictionaries"] = [_dictionary(entry) for entry in document.get("dictionaries") or []]
    known["errors"] = _bars(document.get("errors"))
    ablation = document.get("ablation")
    known["ablation"] = ablation and {
        site: AblationReport(**_figures(AblationReport, held)) for site, held in ablation.items()
    }
    together = document.get("together")
    known["together"] = together and [
        TogetherReport(names=tuple(one["names"]), metrics=_numbers(one["metrics"]), errors=_bars(one.get("errors")))
        for one in together
    ]
    downstream = document.get("downstream")
    known["downstream"] = downstream and downstream_of(downstream)
    known["links"] = _links(document.get("links"))
    known["schema_version"] = SCHEMA_VERSION
    return Report(**known)


def _links(found: Any) -> dict[str, str] | None:
    if found is None:
        return None
    if not isinstance(found, dict) or not all(isinstance(path, str) for path in found.values()):
        raise TypeError("links are no paths by what they are")
    return found


def _dictionary(entry: Mapping[str, Any]) -> DictionaryReport:
    known = _fields(DictionaryReport, entry) | {"class_name": entry.get("class", "")}
    for name in ("metrics", "metrics_all_tokens", "convention_metrics"):
        known[name] = _numbers(entry[name]) if entry.get(name) is not None else None
    for name in ("errors", "errors_all_tokens"):
        known[name] = _bars(entry.get(name))
    for name in ("by_position", "by_token_class"):
        if entry.get(name) is not None:
            known[name] = [TokenGroupReport(**_figures(TokenGroupReport, one)) for one in entry[name]]
    geometry = entry.get("geometry")
    known["geometry"] = Geometry(**_numbers(geometry)) if geometry else None
    return DictionaryReport(**known)


def _fields(record: type, document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries that a record has a field for; other versions may have others."""
    return {field.name: document[field.name] for field in dataclasses.fields(record) if field.name in document}


def _figures(record: type, held: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a record of figures and their error bars."""
    return {**_numbers(_fields(record, held)), "errors": _bars(held.get("errors"))}


def _numbers(held: Mapping[str, Any]) -> dict[str, Any]:
    """Returns figures, with NaN for the null of those that are not finite."""
    return {name: float("nan") if value is None else value for name, value in held.items()}


def _bars(held: Mapping[str, Any] | None) -> dict[str, ErrorBar] | None:
    return None if held is None else {name: ErrorBar(**_numbers(bar)) for name, bar in held.items()}
