"""Where figures of a run go."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

Figures = Mapping[str, Mapping[str, float]]
"""Figures of each dictionary, by the dictionary's name."""


@runtime_checkable
class MetricLogger(Protocol):
    """Is told figures as a run goes on."""

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Takes the figures after a step, and how many tokens were trained on by then."""

    def close(self) -> None:
        """Finishes; called once, also when the run fails."""


class LoggerGroup:
    """Passes everything on to several loggers.

    Args:
        loggers: the loggers.
    """

    def __init__(self, loggers: Sequence[MetricLogger]):
        self.loggers = list(loggers)

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Passes the figures on."""
        for logger in self.loggers:
            logger.log(figures, step, tokens)

    def close(self) -> None:
        """Finishes all of them, also when one of them fails to."""
        errors: list[Exception] = []
        for logger in self.loggers:
            try:
                logger.close()
            except Exception as error:  # noqa: BLE001  (raised below, once all had their turn)
                errors.append(error)
        if errors:
            raise errors[0]


def flat(figures: Figures) -> dict[str, Any]:
    """Returns the figures under one key each: "name/figure"."""
    return {f"{name}/{key}": value for name, values in figures.items() for key, value in values.items()}
