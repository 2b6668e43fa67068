"""The protocol of loggers, a group that outlives any that fails, and warnings of anomalies."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

logger = logging.getLogger(__name__)

Figures = Mapping[str, Mapping[str, float]]
"""Metrics of each dictionary, by the dictionary's name."""
_ANOMALIES = {
    "nonfinite_tokens": "tokens had a NaN or an infinity in their activations and were replaced by other tokens. "
    "Look at the site, or run the model in float32 or bfloat16 instead of float16.",
    "skipped_steps": "steps were skipped because a gradient was not finite. Lower the learning rate, or look for "
    "activations of enormous norm (TokenFilter's max_norm_multiple excludes them).",
}
"""Metrics that count what should not happen, and what to do about it."""


@runtime_checkable
class MetricLogger(Protocol):
    """Receives the metrics of a run."""

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Logs the metrics of a step, at which `tokens` tokens were trained on."""

    def close(self) -> None:
        """Finishes; called once, also when the run fails."""


class LoggerGroup:
    """Passes metrics to several loggers. One that raises costs a warning and is switched off."""

    def __init__(self, loggers: Sequence[MetricLogger]):
        self.loggers = list(loggers)

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Passes a copy of the metrics to each logger that is still on."""

        def log(sink: MetricLogger) -> None:
            # a logger may change what it gets, and the next one must not see it
            sink.log({name: dict(values) for name, values in figures.items()}, step, tokens)

        self._each(f"failed at step {step} and is switched off", log)

    def close(self) -> None:
        """Closes each logger that is still on."""
        self._each("could not be closed", lambda sink: sink.close())
        self.loggers = []

    def _each(self, failure: str, call: Callable[[MetricLogger], None]) -> None:
        for sink in list(self.loggers):
            try:
                call(sink)
            except Exception as error:  # noqa: BLE001  (a run must not die of its log)
                self.loggers.remove(sink)
                logger.warning("The logger %s %s (%s: %s).", type(sink).__name__, failure, type(error).__name__, error)


class AnomalyLogger:
    """Warns through `logging` each time a count of what should not happen has risen."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], float] = {}

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Compares the counts with those logged before."""
        for name, values in figures.items():
            for figure, meaning in _ANOMALIES.items():  # counts over the whole run
                count = values.get(figure, 0)
                if count > self._seen.get((name, figure), 0):
                    logger.warning("Step %d, %s: so far %d %s", step, name, count, meaning)
                    self._seen[name, figure] = count

    def close(self) -> None:
        """Does nothing."""
