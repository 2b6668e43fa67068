"""Warnings about a run that goes wrong without ending."""

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)

_MEANINGS = {
    "nonfinite_tokens": "tokens had a NaN or an infinity in their activations, and others were put in their place. "
    "Look at the site, or run the model in float32 or bfloat16 instead of float16.",
    "skipped_steps": "steps were skipped because a gradient was not finite. Lower the learning rate, or look for activations "
    "of enormous norm (TokenFilter's max_norm_multiple drops them).",
}
"""Figures that count what should not happen, and what to do about it."""


class AnomalyLogger:
    """Writes a warning through `logging` when a count of what should not happen has risen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], float] = {}

    def log(self, figures: Mapping[str, Mapping[str, float]], step: int, tokens: int) -> None:
        """Compares the counts with those of the last time."""
        for name, values in figures.items():
            for figure, meaning in _MEANINGS.items():
                count = values.get(figure, 0)
                if count > self._seen.get((name, figure), 0):
                    logger.warning("Step %d, %s: so far %d %s", step, name, count, meaning)
                    self._seen[name, figure] = count

    def close(self) -> None:
        """Does nothing."""
