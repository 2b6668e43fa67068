"""The protocol of loggers, and a group that outlives any that fails."""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

logger = logging.getLogger(__name__)

Figures = Mapping[str, Mapping[str, float]]
"""Metrics of each dictionary, by the dictionary's name."""


class Evaluated(NamedTuple):
    """What an evaluation on held-out data found for a dictionary."""

    figures: Mapping[str, float]
    """By name, as "eval/fvu"."""
    density: Mapping[str, Any] | None = None
    """The histogram of `SparsityMetric.density`."""
    errors: Mapping[str, float] | None = None
    """Standard errors of figures, where they are known."""


@runtime_checkable
class MetricLogger(Protocol):
    """Receives the metrics of a run."""

    def log(self, figures: Figures, step: int, tokens: int) -> None:
        """Logs the metrics of a step, at which `tokens` tokens were trained on."""

    def close(self) -> None:
        """Finishes; called once, also when the run fails."""


@runtime_checkable
class ResumableLogger(Protocol):
    """A logger that goes on with its run, where the run is resumed. Others start anew."""

    def state_dict(self) -> dict[str, Any]:
        """Returns plain values by which the run's log is found again."""
        ...

    def resume(self, step: int, state: Mapping[str, Any]) -> None:
        """Goes on after a step; called before `log`. What was logged of later steps gives way."""


@runtime_checkable
class EvaluationLogger(Protocol):
    """A logger that also receives what held-out data show during training. Others do not."""

    def log_evaluation(self, evaluated: Mapping[str, Evaluated], step: int, tokens: int) -> None:
        """Logs an evaluation after a step, by the names of the dictionaries."""


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

    def log_evaluation(self, evaluated: Mapping[str, Evaluated], step: int, tokens: int) -> None:
        """Passes a copy of an evaluation to each logger that takes evaluations."""

        def log(sink: MetricLogger) -> None:
            if isinstance(sink, EvaluationLogger):
                sink.log_evaluation(copy.deepcopy(dict(evaluated)), step, tokens)

        self._each(f"failed at the evaluation of step {step} and is switched off", log)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Returns the states of those loggers that can be resumed, by their classes' names."""
        return {name: sink.state_dict() for name, sink in self._resumable()}

    def resume(self, step: int, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Lets those loggers go on after a step."""
        for name, sink in self._resumable():
            sink.resume(step, states.get(name, {}))

    def _resumable(self) -> Iterator[tuple[str, ResumableLogger]]:
        count: Counter[str] = Counter()
        for sink in self.loggers:
            if isinstance(sink, ResumableLogger):
                name = type(sink).__name__
                count[name] += 1
                yield f"{name} {count[name]}", sink

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
