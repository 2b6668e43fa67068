"""From the sums of an evaluation to its records."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.evaluation._bootstrap import ErrorBar, error_bar
from dictionary_learning.evaluation._measured import ABLATIONS, Measured
from dictionary_learning.evaluation._records import AblationReport, TogetherReport, TokenGroupReport
from dictionary_learning.evaluation._sparsity import SparsityMetric

Weights = Float[Tensor, "resamples groups"] | None


def described_metrics(measured: Measured, number: int, weights: Weights) -> dict[str, Any]:
    """Returns what a `DictionaryReport` says of metrics and their error bars."""
    metrics = measured.metrics(number)
    values = {name: value for metric in metrics.values() for name, value in metric.compute().items()}
    losses = measured.figures(number)
    values |= {name: float(value) for name, value in losses.items() if name not in values}
    found: dict[str, Any] = {"metrics": values, "errors": bars(measured.figures(number, weights), weights)}
    whole = measured.metrics_of_all(number)
    if whole is not None:
        found["metrics_all_tokens"] = {k: v for metric in whole.values() for k, v in metric.compute().items()}
        resampled = {k: v for metric in whole.values() for k, v in metric.figures(weights).items()}
        found["errors_all_tokens"] = bars(resampled, weights)
    sparsity = metrics["sparsity"]
    assert isinstance(sparsity, SparsityMetric)
    found |= {"density": sparsity.density(), "dead_by_tokens": sparsity.dead_by_tokens()}
    if measured.facts.columns and measured.breakdown(number).by_document.tables:
        found["by_position"] = _token_groups(measured, number, "position", weights)
        found["by_token_class"] = _token_groups(measured, number, "class", weights)
    return found


def described_ablations(measured: Measured, weights: Weights) -> dict[str, AblationReport]:
    """Returns the losses of each site's ablations."""
    found: dict[str, AblationReport] = {}
    for site in measured.facts.sites:
        values, resampled = dict[str, float](), dict[str, Tensor]()
        for kind in ABLATIONS:
            losses = measured.fidelity(f"{kind}/{site}")
            values |= {f"{name}_{kind}": float(value) for name, value in losses.means().items()}
            resampled |= {f"{name}_{kind}": value for name, value in losses.means(weights).items()}
        found[site] = AblationReport(**values, errors=bars(resampled, weights))
    return found


def described_together(measured: Measured, weights: Weights) -> list[TogetherReport]:
    """Returns the losses of each set of dictionaries that are spliced in at once."""
    found: list[TogetherReport] = []
    for number, names in enumerate(measured.facts.together):
        values = measured.resampled_losses(f"together/{number}", None)
        if values:
            errors = bars(measured.resampled_losses(f"together/{number}", weights), weights)
            found.append(TogetherReport(names=names, metrics={k: float(v) for k, v in values.items()}, errors=errors))
    return found


def bars(resampled: Mapping[str, Tensor], weights: Weights) -> dict[str, ErrorBar] | None:
    """Returns the error bar of each figure that has one; None if nothing was resampled."""
    if weights is None:
        return None
    found = {name: error_bar(values, weights.shape[1], name) for name, values in resampled.items()}
    return {name: bar for name, bar in found.items() if bar is not None}


def _token_groups(measured: Measured, number: int, what: str, weights: Weights) -> list[TokenGroupReport]:
    """Returns the figures of the tokens of each column that has any."""
    breakdown = measured.breakdown(number)
    counts = breakdown.by_document.totals()["n"][0]
    fvu, values, resampled = breakdown.fvu(), breakdown.figures(), breakdown.figures(weights)
    found: list[TokenGroupReport] = []
    for column, (of, name) in enumerate(measured.facts.columns):
        if of != what or not counts[column]:
            continue
        own = {key: float(value[0, column]) for key, value in values.items()}
        errors = bars({key: value[:, column] for key, value in resampled.items()}, weights)
        found.append(
            TokenGroupReport(name=name, n_tokens=int(counts[column]), fvu=float(fvu[column]), **own, errors=errors)
        )
    return found
