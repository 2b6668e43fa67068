"""The protocol of loggers, and a group of them that outlives any that fails."""

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

logger = logging.getLogger(__name__)

Figures = Mapping[str, Mapping[str, float]]
"""Metrics of each dictionary, by the dictionary's name."""


@runtime_checkable
class MetricLogger(Protocol):
    """Receives the metrics of a run."""

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Logs the metrics of a step, at which `tokens` tokens were trained on."""

    def close(self) -> None:
        """Finishes; called once, also when the run fails."""


class LoggerGroup:
    """Passes metrics to several loggers. A logger that raises costs one warning and is switched off; the run goes on.

    Args:
        loggers: the loggers.
    """

    def __init__(self, loggers: Sequence[MetricLogger]):
        self.loggers = list(loggers)

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Passes the metrics to each logger that is still on."""
        for sink in list(self.loggers):
            try:
                sink.log(figures, step, tokens)
            except Exception as error:  # noqa: BLE001  (a run must not die of its log)
                self.loggers.remove(sink)
                _warn(sink, f"failed at step {step} and is switched off", error)

    def close(self) -> None:
        """Closes each logger that is still on."""
        for sink in self.loggers:
            try:
                sink.close()
            except Exception as error:  # noqa: BLE001
                _warn(sink, "could not be closed", error)
        self.loggers = []


def flat(figures: Figures) -> dict[str, float]:
    """Returns the metrics under one key each: "name/metric"."""
    return {f"{name}/{key}": value for name, values in figures.items() for key, value in values.items()}


def _warn(sink: MetricLogger, what: str, error: Exception) -> None:
    logger.warning("The logger %s %s (%s: %s).", type(sink).__name__, what, type(error).__name__, error)
