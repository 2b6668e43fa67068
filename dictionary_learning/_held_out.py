"""Evaluation while a run trains: on held-out data, every so many steps, at the cost of no bit.

What is evaluated are copies of the dictionaries, as they would be saved. The data are read from
their beginning each time, the random numbers are put back, and what fails costs a warning: a run
ends with the same dictionaries with and without it. Of several ranks, the first one evaluates, as
one process would, and the others wait.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dictionary_learning._best import Best
from dictionary_learning._held_out_data import HeldOutData, Place
from dictionary_learning._random_state import kept_random_state
from dictionary_learning._run_setup import TrainingJob
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries._serialization import nonfinite_names
from dictionary_learning.errors import RankError
from dictionary_learning.loggers import Evaluated, LoggerGroup
from dictionary_learning.parallel import ALONE, Ranks

logger = logging.getLogger(__name__)

PREFIX = "eval/"
"""How the names of these figures begin in logs."""


class Evaluation:
    """Evaluates the dictionaries of a run, logs what is found, and keeps the best ones.

    Args:
        every: Steps between two evaluations; the last step is evaluated too.
        steps: Steps of the run.
        jobs: The dictionaries in training, of this rank.
        data: What they are evaluated on; None on ranks that do not evaluate.
        sink: Gets the figures.
        best: Keeps the best dictionaries, or None.
        export: Returns all dictionaries of the run, as they would be saved; all ranks ask for them.
        places: Where each of them belongs.
        ranks: The ranks of the run; the others wait until the first one has evaluated.
    """

    def __init__(
        self,
        every: int,
        steps: int,
        jobs: Sequence[TrainingJob],
        data: HeldOutData | None,
        sink: LoggerGroup,
        best: Best | None,
        export: Callable[[], list[Dictionary]],
        places: Sequence[Place],
        ranks: Ranks = ALONE,
    ):
        self.every, self.steps, self.data, self.sink, self.best = every, steps, data, sink, best
        self._export, self._places, self._jobs = export, places, jobs
        self._ranks = ranks

    def after_step(self, step: int, n_tokens: int) -> None:
        """Evaluates if this step is one of those; a failure costs a warning."""
        if step % self.every and step != self.steps:
            return
        with kept_random_state():
            try:
                exported = self._export()
                if self.data is not None:
                    self._evaluate(self.data, exported, step, n_tokens)
                del exported
            except RankError:
                raise
            except Exception as error:  # noqa: BLE001  (no evaluation is worth a run)
                logger.warning(
                    "The evaluation after step %d failed (%s: %s). The run goes on, and evaluates again after %d "
                    "steps.", step, type(error).__name__, error, self.every,
                )  # fmt: skip
        self._ranks.patient().tell([0])

    def _evaluate(self, data: HeldOutData, exported: Sequence[Dictionary], step: int, n_tokens: int) -> None:
        device = self._jobs[0].trainer.device
        # one that diverged must not cost the others their figures
        dictionaries = {n: one.to(device) for n, one in enumerate(exported) if not nonfinite_names(one)}
        places = {number: self._places[number] for number in dictionaries}
        measured = data.evaluate(list(places.values()), list(dictionaries.values()))
        found = dict(zip(dictionaries, measured, strict=True))
        named = {places[number].name: _prefixed(one) for number, one in found.items()}
        self.sink.log_evaluation(named, step, n_tokens)
        if self.best is not None:
            figures = {number: one.figures for number, one in found.items()}
            self.best.offer(exported, figures, step, n_tokens)

    def state_dict(self) -> dict[str, Any]:
        """Returns which dictionaries were the best so far."""
        return {} if self.best is None else self.best.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes."""
        if self.best is not None:
            self.best.load_state_dict(state)


def _prefixed(one: Evaluated) -> Evaluated:
    return one._replace(figures={f"{PREFIX}{key}": value for key, value in one.figures.items()})
