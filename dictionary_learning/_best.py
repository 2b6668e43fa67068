"""The best dictionary of a run so far, by a metric of held-out data, as a folder of its own."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dictionary_learning._saving import save_whole
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.evaluation.reports._contents import DETAILS, TABLE

logger = logging.getLogger(__name__)

BEST = "best"
"""The folder of the best dictionary, in the folder of its trainer."""
Direction = Literal["lower", "higher", "near 1"]
_OF_PREDICTIONS = ("ce", "kl")
_KNOWN: dict[str, Any] = {metric.key: metric.better for metric in (*TABLE, *DETAILS)} | {"n_dead": "lower"}
"""Which way each metric is better."""


class Best:
    """Keeps each dictionary's best step, by one metric, as `trainer_<number>/best`.

    Args:
        metric: The metric.
        direction: Which way it is better.
        folder: The folder of the run.
        format: The format of its dictionaries.
    """

    def __init__(self, metric: str, direction: Direction, folder: Path, format: str = "own"):
        self.metric, self.direction, self.folder, self.format = metric, direction, folder, format
        self.found: dict[int, dict[str, float]] = {}
        """Value, step and tokens of the best dictionary, by its number."""

    def offer(
        self,
        dictionaries: Sequence[Dictionary],
        figures: Mapping[int, Mapping[str, float]],
        step: int,
        n_tokens: int,
    ) -> None:
        """Saves the dictionaries that are better than any before; a failure costs a warning.

        Args:
            dictionaries: All of the run.
            figures: Those of the dictionaries that were evaluated, by their numbers.
            step: The step after which they were.
            n_tokens: Tokens trained on up to there.
        """
        for number, values in figures.items():
            dictionary, value = dictionaries[number], values.get(self.metric, math.nan)
            if not math.isfinite(value):
                logger.warning(
                    "The evaluation after step %d has no number for save_best='%s' (%s): this step is not kept. "
                    "'fvu' always has one.", step, self.metric, values.get(self.metric, "no such figure"),
                )  # fmt: skip
                continue
            before = self.found.get(number)
            if before is not None and self._rank(value) <= self._rank(before["value"]):
                continue
            found = {"value": value, "step": step, "n_tokens": n_tokens}
            best = {"metric": self.metric, "better": self.direction, **found, "figures": dict(values)}
            place = self.folder / f"trainer_{number}" / BEST
            try:
                save_whole(dictionary, place, {"best": best}, self.format)
            except Exception as error:  # noqa: BLE001  (the run goes on, and its end is saved anyway)
                logger.warning("'%s' could not be written (%s: %s).", place, type(error).__name__, error)
                continue
            self.found[number] = found
            logger.info("Step %d: %s %.6g is the best so far; saved as '%s'.", step, self.metric, value, place)

    def state_dict(self) -> dict[str, Any]:
        """Returns what the next dictionaries are compared with."""
        return {"metric": self.metric, "found": {number: dict(found) for number, found in self.found.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes, unless another metric decided before."""
        if state.get("metric") == self.metric:
            self.found = {number: dict(found) for number, found in state["found"].items()}

    def _rank(self, value: float) -> float:
        return {"higher": value, "lower": -value, "near 1": -abs(value - 1)}[self.direction]


def criterion(save_best: str | Mapping[str, Any], has_predictions: bool) -> tuple[str, Direction]:
    """Returns the metric that decides, and which way it is better.

    Args:
        save_best: The name of a metric; or the name with "lower" or "higher", which any figure may
            have.
        has_predictions: Whether the model's predictions are measured.

    Raises:
        ConfigError: The metric is not measured, or no way is the better one.
    """
    if not isinstance(save_best, str):
        pairs = list(save_best.items())
        if len(pairs) != 1 or pairs[0][1] not in ("lower", "higher"):
            raise ConfigError(f"Got save_best={dict(save_best)!r}; give one metric, as 'fvu' or {{'l0': 'lower'}}.")
        return str(pairs[0][0]), pairs[0][1]
    if save_best not in _KNOWN:
        raise UnknownNameError("metric in save_best", save_best, _KNOWN)
    if not has_predictions and save_best.startswith(_OF_PREDICTIONS):
        raise ConfigError(
            f"Got save_best='{save_best}', which needs the model's predictions. Give text as evaluation_data, with "
            "n_fidelity_tokens above 0, or choose 'fvu'."
        )
    better = _KNOWN[save_best]
    if better == "neither":
        raise ConfigError(
            f"Got save_best='{save_best}', of which less is not better or worse. Say what is meant, as "
            f"save_best={{'{save_best}': 'lower'}}, or choose 'fvu'."
        )
    return save_best, better
