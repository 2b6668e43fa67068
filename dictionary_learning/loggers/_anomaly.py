"""Warnings about a run that goes wrong without an error."""

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)

_MEANINGS = {
    "nonfinite_tokens": "tokens had a NaN or an infinity in their activations and were replaced by other tokens. "
    "Look at the site, or run the model in float32 or bfloat16 instead of float16.",
    "skipped_steps": "steps were skipped because a gradient was not finite. Lower the learning rate, or look for "
    "activations of enormous norm (TokenFilter's max_norm_multiple excludes them).",
}
"""Metrics that count what should not happen, and what to do about it."""


class AnomalyLogger:
    """Warns through `logging` each time a count of what should not happen has risen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], float] = {}

    def log(self, figures: Mapping[str, Mapping[str, float]], step: int, tokens: int) -> None:
        """Compares the counts with those logged before."""
        for name, values in figures.items():
            for figure, meaning in _MEANINGS.items():
                count = values.get(figure, 0)
                if count > self._seen.get((name, figure), 0):
                    logger.warning("Step %d, %s: so far %d %s", step, name, count, meaning)
                    self._seen[name, figure] = count

    def close(self) -> None:
        """Does nothing."""
