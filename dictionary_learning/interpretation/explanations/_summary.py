"""The scores of many explanations, beside those of a judge that knows nothing."""

import math
from collections.abc import Iterable

from dictionary_learning.interpretation._records import Explanation

FLOORS = {
    "detection": 0.5,
    "fuzzing": 0.5,
    "simulation": 0.0,
    "embedding": 0.5,
    "detection_f1": 2 / 3,
    "fuzzing_f1": 2 / 3,
}
"""What a judge reaches that always says the same: always "none" or always "active" of balanced
accuracy, the latter of F1. Plain accuracy has a higher floor: of SAEBench's fourteen windows ten
are quiet, so always "none" is right in 10 / 14 = 0.714, and a score near that says nothing."""


def summarize_scores(explanations: Iterable[Explanation]) -> list[str]:
    """Returns a line for each score: its mean over latents, the standard error, and the floor."""
    found: dict[str, list[float]] = {}
    for one in explanations:
        for name, value in one.scores.items():
            found.setdefault(name, []).append(value)
    return [_line(name, values) for name, values in found.items()]


def _line(name: str, values: list[float]) -> str:
    n = len(values)
    mean = sum(values) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n) if n > 1 else math.nan
    kind = ", a balanced accuracy" if name in ("detection", "fuzzing") else ""
    text = f"{name}{kind}: {mean:.3f}" + (f" \u00b1 {spread:.3f}" if n > 1 else "")
    text += f" over {n} {'latent' if n == 1 else 'latents'}"
    return text + (f"; a judge that always says the same has {FLOORS[name]:.3f}." if name in FLOORS else ".")
