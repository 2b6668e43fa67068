"""The metrics of a report: what each means, its range, and which way is better."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dictionary_learning.evaluation.reports._formatting import anything, count, decimal, finite, percent, signed, tenths


class Shown(NamedTuple):
    """A metric as a report shows it."""

    key: str
    label: str
    meaning: str
    span: str
    better: Literal["lower", "higher", "near 1", "neither"]
    write: Callable[[Any], str] = decimal


_CE_SPAN = "0 is the ablation, 1 the original model"
TABLE = (
    Shown("l0", "L0", "mean number of nonzero latents per token", "0 to width", "neither", tenths),
    Shown("fvu", "FVU", "variance unexplained: sum |x - x_hat|^2 / sum |x - mean x|^2", "from 0; the mean scores 1", "lower"),
    Shown("frac_variance_explained", "FVE", "variance explained: 1 - FVU", "up to 1", "higher"),
    Shown("ce_reconstructed", "CE", "cross-entropy with x_hat spliced into the model, nats per token", "from 0", "lower"),
    Shown("ce_increase", "CE increase", "CE minus that of the original model, nats per token", "about 0 and up", "lower", signed),
    Shown("ce_recovered_zero", "recovered (zero)", "(zero-ablated CE - CE) / (zero-ablated CE - original CE)", _CE_SPAN, "higher"),
    Shown("ce_recovered_mean", "recovered (mean)", "the same with mean ablation, usually the harder baseline", _CE_SPAN, "higher"),
    Shown("kl", "KL", "KL divergence from the original model's predictions, nats per token", "from 0", "lower"),
    Shown("frac_alive", "alive", "latents that fired on at least one token; grows with the tokens", "0% to 100%", "higher", percent),
)  # fmt: skip
"""Columns of the table of dictionaries. L0 is a choice, not a merit, so neither way is better."""

DETAILS = (
    Shown("mse", "MSE", "squared norm of the error, mean per token", "from 0", "lower"),
    Shown("l2_loss", "L2 loss", "norm of the error, mean per token", "from 0", "lower"),
    Shown("l1_loss", "L1", "sum of the absolute latents, mean per token", "from 0", "neither"),
    Shown("cossim", "cosine", "cosine of x and x_hat, mean per token", "-1 to 1", "higher"),
    Shown("l2_ratio", "norm ratio", "|x_hat| / |x|, mean per token; below 1 is shrinkage", "from 0", "near 1"),
    Shown("relative_reconstruction_bias", "bias", "sum |x_hat|^2 / sum <x, x_hat>; below 1 is shrinkage", "from 0", "near 1"),
    Shown("n_alive", "latents alive", "number of latents that fired", "0 to width", "higher", count),
    Shown("n_tokens", "tokens", "number of tokens in the metrics of activations", "from 1", "neither", count),
)  # fmt: skip
"""Metrics shown for each dictionary by itself."""

BASELINES = {
    "ce_mean": "CE mean-ablated",
    "ce_zero": "CE zero-ablated",
    "kl_mean": "KL mean-ablated",
    "kl_zero": "KL zero-ablated",
}
"""Columns of the table of ablations, after the cross-entropy of the original model."""


def shown_columns(dictionaries: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """Returns the columns of the table in which at least one dictionary has a value."""
    return [c for c in TABLE if any(finite(d["metrics"].get(c.key)) is not None for d in dictionaries)]


def defined(dictionaries: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """Returns the metrics that a report explains: the columns, and the details that some dictionary has."""
    present = {key for d in dictionaries for key in d["metrics"]}
    return [*shown_columns(dictionaries), *(metric for metric in DETAILS if metric.key in present)]


def baselines(report: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Returns the rows of the table of ablations: the site, then the original model's cross-entropy and `BASELINES`."""
    clean = decimal(report.get("ce_clean"))
    ablation = report.get("ablation") or {}
    return [(str(site), [clean, *(decimal(found.get(key)) for key in BASELINES)]) for site, found in ablation.items()]


def all_metrics(dictionary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (label, text) of every metric of a dictionary; unknown ones have their key as label."""
    metrics = dictionary["metrics"]
    known = {metric.key: metric for metric in (*TABLE, *DETAILS)}
    pairs = [(metric.label, metric.write(metrics[key])) for key, metric in known.items() if key in metrics]
    others = {key: value for key, value in metrics.items() if key not in known}
    return pairs + [(key, decimal(v) if isinstance(v, float) else anything(v)) for key, v in others.items()]


def best_values(dictionaries: Sequence[Mapping[str, Any]]) -> set[tuple[int, str]]:
    """Returns (index of dictionary, metric) of the best values among the dictionaries of each site.

    A site with one value, or with equal values, has no best one.
    """
    best: set[tuple[int, str]] = set()
    for site in {d["site"] for d in dictionaries}:
        for metric in TABLE:
            values = {i: finite(d["metrics"].get(metric.key)) for i, d in enumerate(dictionaries) if d["site"] == site}
            present = {i: value for i, value in values.items() if value is not None}
            if metric.better not in ("lower", "higher") or len(set(present.values())) < 2:
                continue
            # equal best values are all marked
            top = min(present.values()) if metric.better == "lower" else max(present.values())
            best |= {(i, metric.key) for i, value in present.items() if value == top}
    return best
