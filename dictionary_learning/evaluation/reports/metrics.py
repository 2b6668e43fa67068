"""The metrics of a report: what each says, its range, and which way is better."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dictionary_learning.evaluation.reports.formatting import anything, count, decimal, finite, percent, signed, tenths

Better = Literal["lower", "higher", "near 1", "neither"]


class Shown(NamedTuple):
    """A metric as it is shown."""

    key: str
    label: str
    meaning: str
    span: str
    better: Better
    write: Callable[[Any], str] = decimal


TABLE = (
    Shown("l0", "L0", "latents that are not zero, mean per token", "0 to width", "neither", tenths),
    Shown(
        "fvu",
        "FVU",
        "variance not explained: sum |x - x_hat|^2 / sum |x - mean x|^2",
        "from 0; the mean scores 1",
        "lower",
    ),
    Shown("frac_variance_explained", "FVE", "variance explained: 1 - FVU", "up to 1", "higher"),
    Shown(
        "ce_reconstructed",
        "CE",
        "cross-entropy of the model with its activations replaced by x_hat, nats per token",
        "from 0",
        "lower",
    ),
    Shown(
        "ce_increase",
        "CE increase",
        "CE less that of the untouched model, nats per token",
        "about 0 and up",
        "lower",
        signed,
    ),
    Shown(
        "ce_recovered_zero",
        "recovered (zero)",
        "(CE of zero ablation - CE) / (CE of zero ablation - untouched CE)",
        "0 like the ablation, 1 untouched",
        "higher",
    ),
    Shown(
        "ce_recovered_mean",
        "recovered (mean)",
        "the same against mean ablation, usually the harder baseline",
        "0 like the ablation, 1 untouched",
        "higher",
    ),
    Shown(
        "kl",
        "KL",
        "divergence of the replaced model's predictions from the untouched ones, nats per token",
        "from 0",
        "lower",
    ),
    Shown(
        "frac_alive",
        "alive",
        "latents that fired on at least one of the tokens; grows with their number",
        "0% to 100%",
        "higher",
        percent,
    ),
)
"""Columns of the table of dictionaries. L0 is a choice, not a merit, so neither way is better."""

DETAILS = (
    Shown("mse", "MSE", "squared norm of the error, mean per token", "from 0", "lower"),
    Shown("l2_loss", "L2 loss", "norm of the error, mean per token", "from 0", "lower"),
    Shown("l1_loss", "L1", "sum of the absolute latents, mean per token", "from 0", "neither"),
    Shown("cossim", "cosine", "cosine of x and x_hat, mean over tokens", "-1 to 1", "higher"),
    Shown("l2_ratio", "norm ratio", "|x_hat| / |x|, mean over tokens; less than 1 is shrinkage", "from 0", "near 1"),
    Shown(
        "relative_reconstruction_bias",
        "bias",
        "sum |x_hat|^2 / sum <x, x_hat>; less than 1 is shrinkage",
        "from 0",
        "near 1",
    ),
    Shown("n_alive", "latents alive", "how many latents fired", "0 to width", "higher", count),
    Shown("n_tokens", "tokens", "tokens that the figures of activations are over", "from 1", "neither", count),
)
"""Metrics shown for each dictionary by itself."""


def shown_columns(dictionaries: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """Returns the columns of the table for which at least one dictionary has a value."""
    return [c for c in TABLE if any(finite(d["metrics"].get(c.key)) is not None for d in dictionaries)]


def all_metrics(dictionary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (label, text) of every metric that a dictionary has, the unknown ones under their own names."""
    metrics = dictionary["metrics"]
    known = {metric.key: metric for metric in (*TABLE, *DETAILS)}
    pairs = [(metric.label, metric.write(metrics[key])) for key, metric in known.items() if key in metrics]
    return pairs + [
        (key, decimal(value) if isinstance(value, float) else anything(value))
        for key, value in metrics.items()
        if key not in known
    ]


def best_values(dictionaries: Sequence[Mapping[str, Any]]) -> set[tuple[int, str]]:
    """Returns (index of dictionary, metric) of the best values, each among the dictionaries of the same site.

    A site with one value, or with the same value throughout, has no best one.
    """
    best: set[tuple[int, str]] = set()
    for site in {d["site"] for d in dictionaries}:
        for metric in TABLE:
            values = {i: finite(d["metrics"].get(metric.key)) for i, d in enumerate(dictionaries) if d["site"] == site}
            present = {i: value for i, value in values.items() if value is not None}
            if metric.better not in ("lower", "higher") or len(set(present.values())) < 2:
                continue
            top = min(present.values()) if metric.better == "lower" else max(present.values())
            best |= {(i, metric.key) for i, value in present.items() if value == top}
    return best
