"""Figures by the rules of another package, beside ours, with what they mean there."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dictionary_learning.evaluation.reports._contents import DASH, anything, decimal, finite

PACKAGES = {"dictionary_learning": "dictionary-learning 0.1", "saelens": "SAELens 6", "saebench": "SAEBench 0.6"}
"""What each convention is called in words."""


class Defined(NamedTuple):
    """A figure of another package."""

    ours: str | None
    """The name of ours that it is nearest to."""
    meaning: str
    """Its definition there, and its unit."""


_MEANS = {
    "l0": Defined("l0", "mean number of nonzero latents per token"),
    "cossim": Defined("cossim", "cosine of x and x_hat, mean over tokens"),
    "l2_ratio": Defined("l2_ratio", "|x_hat| / |x|, mean over tokens"),
    "relative_reconstruction_bias": Defined(
        "relative_reconstruction_bias", "E |x_hat|^2 / E <x, x_hat> of each batch, mean over batches"
    ),
}
_OF_BOTH = {
    **_MEANS,
    "l2_norm_in": Defined(None, "|x|, mean over tokens, in units of the activations"),
    "l2_norm_out": Defined(None, "|x_hat|, mean over tokens, in units of the activations"),
    "explained_variance_legacy": Defined(
        "frac_variance_explained", "1 - |x - x_hat|^2 / |x - mean of the batch|^2, mean over tokens"
    ),
    "ce_loss_without_sae": Defined("ce_clean", "cross-entropy of the model, nats per token whose input counts"),
    "ce_loss_with_sae": Defined("ce_reconstructed", "the same with x_hat spliced in"),
    "ce_loss_with_ablation": Defined("ce_zero", "the same with zero at every position"),
    "kl_div_with_sae": Defined(
        "kl", "KL divergence from the model's predictions with x_hat spliced in, nats per token"
    ),
    "kl_div_with_ablation": Defined("kl_zero", "the same with zero at every position"),
    "ce_loss_score": Defined(
        "ce_recovered_zero", "share of the cross-entropy that zero ablation costs and x_hat does not"
    ),
    "kl_div_score": Defined("kl_recovered_zero", "1 - KL with x_hat / KL with zero ablation"),
}
DEFINED: Mapping[str, Mapping[str, Defined]] = {
    "dictionary_learning": {
        **_MEANS,
        "l2_loss": Defined("l2_loss", "|x - x_hat|, mean over tokens, in units of the activations"),
        "l1_loss": Defined("l1_loss", "sum of the absolute latents, mean over tokens"),
        "frac_variance_explained": Defined(
            "frac_variance_explained", "1 - sum var (x - x_hat) / sum var x of each batch: a constant error goes unseen"
        ),
        "loss_original": Defined("ce_clean", "cross-entropy of the model, nats per token that is no padding"),
        "loss_reconstructed": Defined("ce_reconstructed", "the same with x_hat at every position"),
        "loss_zero": Defined("ce_zero", "the same with zero at every position"),
        "frac_recovered": Defined("ce_recovered_zero", "(reconstructed - zero) / (original - zero) of each batch"),
        "frac_alive": Defined("frac_alive", "share of latents that fired on at least one token"),
    },
    "saelens": {
        **_OF_BOTH,
        "mse": Defined("mse", "|x - x_hat|^2, mean over tokens"),
        "l1": Defined("l1_loss", "sum of the absolute latents, mean over tokens"),
        "explained_variance": Defined("frac_variance_explained", "1 - E |x - x_hat|^2 / (E |x|^2 - |E x|^2)"),
    },
    "saebench": {
        **_OF_BOTH,
        "mse": Defined("mse", "|x - x_hat|^2, mean over tokens, divided by the tokens of the batch again"),
        "l1": Defined("l1_loss", "sum of the latents with their sign, mean over tokens"),
        "explained_variance": Defined(
            "frac_variance_explained", "1 - E |x - x_hat|^2 / (E |x|^2 - (E |x|^2 / width)^2): changes with the scale"
        ),
        "frac_alive": Defined("frac_alive", "share of latents that fired on at least one token"),
        "freq_over_1_percent": Defined(None, "share of latents that fire on more than 1 % of the tokens"),
        "freq_over_10_percent": Defined("frac_dense", "share of latents that fire on more than 10 % of the tokens"),
    },
}
"""The figures of each convention."""
_MAIN = ("l0", "mse", "l2_loss", "explained_variance", "frac_variance_explained", "ce_loss_score", "frac_recovered",
         "kl_div_with_sae")  # fmt: skip
"""Those that a line of the shell has room for."""


class Row(NamedTuple):
    """A figure of one dictionary."""

    dictionary: str
    key: str
    theirs: str
    ours_name: str
    ours: str


def package_of(report: Mapping[str, Any]) -> str:
    """Returns the package whose figures a report has too, in words; empty for none."""
    name = report.get("convention")
    return PACKAGES.get(str(name), anything(name)) if name and rows_of(report) else ""


def rows_of(report: Mapping[str, Any]) -> list[Row]:
    """Returns the figures by the other package's rules, of every dictionary that has them."""
    known = DEFINED.get(str(report.get("convention")), {})
    found: list[Row] = []
    for d in report.get("dictionaries") or []:
        own = _ours(report, d)
        theirs: Mapping[str, Any] = d.get("convention_metrics") or {}
        for key in [*(key for key in known if key in theirs), *(key for key in theirs if key not in known)]:
            name = known[key].ours if key in known else None
            value = DASH if name is None else decimal(own.get(name))
            found.append(Row(str(d["name"]), key, decimal(theirs[key]), name or DASH, value))
    return found


def meanings_of(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (name, definition) of each of these figures that the report has."""
    known, there = DEFINED.get(str(report.get("convention")), {}), {row.key for row in rows_of(report)}
    return [(key, one.meaning) for key, one in known.items() if key in there]


def lines_of(report: Mapping[str, Any]) -> list[list[str]]:
    """Returns a table for the shell: the main figures of each dictionary, with ours after them."""
    rows = rows_of(report)
    shown = [key for key in _MAIN if any(row.key == key for row in rows)]
    names = list(dict.fromkeys(row.dictionary for row in rows))
    cells = {(row.dictionary, row.key): f"{row.theirs} (ours {row.ours})" for row in rows}
    head = [f"by {package_of(report)}", *shown]
    return [head, *([name, *(cells.get((name, key), "") for key in shown)] for name in names)] if rows else []


def note_of(report: Mapping[str, Any]) -> str:
    """Returns a sentence on what the figures are."""
    return (
        f"By the rules of {package_of(report)}, for comparison with what was published: other tokens count, and some "
        "figures are means of batches. They have no error bars. Ours are the figures above."
    )


def _ours(report: Mapping[str, Any], dictionary: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our figures of a dictionary, with those of the model at its site."""
    sites: Sequence[Any] = [
        found for site, found in (report.get("ablation") or {}).items() if site == dictionary["site"]
    ]
    ablated = {key: value for key, value in (sites[0] if sites else {}).items() if finite(value) is not None}
    return {"ce_clean": report.get("ce_clean"), **ablated, **dictionary["metrics"]}
