"""Metrics by the names that dashboards of other packages show, in the units that these have there.

A name stands for what it stands for there: figures of a training step, or of an evaluation. Read
from SAELens 3.23, 5.11 and 6.54, and from dictionary-learning 0.1. Figures that these packages log
and this one does not measure have no entry.
"""

from collections.abc import Mapping
from typing import Any

from dictionary_learning.loggers._base import Evaluated

_OF_A_STEP = {
    "metrics/l0": "l0",
    "losses/overall_loss": "loss",
    "sparsity/dead_features": "dead_features",
    "details/current_learning_rate": "lr",
}
"""SAELens' names of a step's figures, and ours. dictionary-learning's are ours: l0, loss, ..."""
_OF_AN_EVALUATION = {
    "ce_loss_score": "ce_recovered_zero",
    "ce_loss_with_sae": "ce_reconstructed",
    "ce_loss_without_sae": "ce_clean",
    "ce_loss_with_ablation": "ce_zero",
    "kl_div_with_sae": "kl",
    "kl_div_with_ablation": "kl_zero",
}
"""SAELens 3 has these below "metrics/"; later versions by `_SECTIONS`."""
_SECTIONS = {"ce_": "model_performance_preservation", "kl_": "model_behavior_preservation"}
_BELOW = {"sparsity/below_1e-5": -5.0, "sparsity/below_1e-6": -6.0}
"""Numbers of latents that fire on a smaller share of the tokens; the log10 of that share."""
_NEVER = (-10.25, -9.75)
"""The bin of latents that never fired: SAELens draws log10(share + 1e-10)."""


def of_training(figures: Mapping[str, float], tokens: int) -> dict[str, float]:
    """Returns figures of a training step by the names of other packages.

    `explained_variance` and `frac_variance_explained` are 1 - fvu of the batch. dictionary-learning
    centers the error of each batch, so its own figure is a little higher.
    """
    found = {theirs: figures[ours] for theirs, ours in _OF_A_STEP.items() if ours in figures}
    if "fvu" in figures:
        found |= dict.fromkeys(("metrics/explained_variance", "frac_variance_explained"), 1 - figures["fvu"])
    if found:
        found |= dict.fromkeys(("details/n_training_tokens", "details/n_training_samples"), tokens)
    return found


def of_evaluation(evaluated: Evaluated) -> tuple[dict[str, float], dict[str, tuple[list[int], list[float]]]]:
    """Returns figures of an evaluation by SAELens' names, and histograms as (counts, edges)."""
    ours = {key.removeprefix("eval/"): value for key, value in evaluated.figures.items()}
    found = {theirs: ours[own] for theirs, own in _OF_AN_EVALUATION.items() if own in ours}
    if ours.get("kl_zero") and "kl" in ours:
        found["kl_div_score"] = (ours["kl_zero"] - ours["kl"]) / ours["kl_zero"]
    named = {f"metrics/{name}": value for name, value in found.items()}
    named |= {f"{_SECTIONS[name[:3]]}.{name}": value for name, value in found.items()}
    density = evaluated.density
    if density is None:
        return named, {}
    counts, edges = density["counts"], density["log10_edges"]
    for name, limit in _BELOW.items():
        named[name] = density["n_never_fired"] + _count_below(density, limit)
    histogram = ([density["n_never_fired"], 0, *counts], [*_NEVER, *edges])
    return named, {"plots/feature_density_line_chart": histogram}


def _count_below(density: Mapping[str, Any], limit: float) -> int:
    return sum(n for n, high in zip(density["counts"], density["log10_edges"][1:], strict=True) if high <= limit)
