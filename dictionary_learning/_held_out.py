"""Evaluation while a run trains: on held-out data, every so many steps, at the cost of no bit.

What is evaluated are copies of the dictionaries, as they would be saved. The data are read from
their beginning each time, the random numbers are put back, and what fails costs a warning: a run
ends with the same dictionaries with and without it.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dictionary_learning._best import Best
from dictionary_learning._held_out_data import HeldOutData, Place
from dictionary_learning._resume import kept_random_state
from dictionary_learning._run_setup import TrainingJob
from dictionary_learning.dictionaries._serialization import nonfinite_names
from dictionary_learning.loggers import Evaluated, LoggerGroup

logger = logging.getLogger(__name__)

PREFIX = "eval/"
"""How the names of these figures begin in logs."""


class Evaluation:
    """Evaluates the dictionaries of a run, logs what is found, and keeps the best ones.

    Args:
        every: Steps between two evaluations; the last step is evaluated too.
        steps: Steps of the run.
        jobs: The dictionaries in training.
        data: What they are evaluated on.
        sink: Gets the figures.
        best: Keeps the best dictionaries, or None.
    """

    def __init__(
        self,
        every: int,
        steps: int,
        jobs: Sequence[TrainingJob],
        data: HeldOutData,
        sink: LoggerGroup,
        best: Best | None,
    ):
        self.every, self.steps, self.jobs, self.data, self.sink, self.best = every, steps, jobs, data, sink, best

    def after_step(self, step: int, n_tokens: int) -> None:
        """Evaluates if this step is one of those; a failure costs a warning."""
        if step % self.every and step != self.steps:
            return
        with kept_random_state():
            try:
                exported = {number: job.export() for number, job in enumerate(self.jobs)}
                # one that diverged must not cost the others their figures
                dictionaries = {number: one for number, one in exported.items() if not nonfinite_names(one)}
                places = {number: Place.of(self.jobs[number]) for number in dictionaries}
                measured = self.data.evaluate(list(places.values()), list(dictionaries.values()))
                found = dict(zip(dictionaries, measured, strict=True))
                named = {places[number].name: _prefixed(one) for number, one in found.items()}
                self.sink.log_evaluation(named, step, n_tokens)
                if self.best is not None:
                    figures = {number: one.figures for number, one in found.items()}
                    self.best.offer(list(exported.values()), figures, step, n_tokens)
            except Exception as error:  # noqa: BLE001  (no evaluation is worth a run)
                logger.warning(
                    "The evaluation after step %d failed (%s: %s). The run goes on, and evaluates again after %d "
                    "steps.", step, type(error).__name__, error, self.every,
                )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Returns which dictionaries were the best so far."""
        return {} if self.best is None else self.best.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes."""
        if self.best is not None:
            self.best.load_state_dict(state)


def _prefixed(one: Evaluated) -> Evaluated:
    return one._replace(figures={f"{PREFIX}{key}": value for key, value in one.figures.items()})
