"""A run goes on: its checkpoint is found, compared with the run, and read."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dictionary_learning._border import said
from dictionary_learning._checkpoint import (
    Checkpoint,
    check_files,
    complete_checkpoints,
    read_checkpoint,
    read_manifest,
)
from dictionary_learning._disk import shown
from dictionary_learning._plain import differences
from dictionary_learning._random_state import set_random_state
from dictionary_learning._run_setup import TrainingJob
from dictionary_learning.activations._spread import SpreadStream, Stream
from dictionary_learning.errors import CheckpointError, ConfigError, UnknownNameError
from dictionary_learning.parallel import ALONE, Ranks
from dictionary_learning.trainers._latent_state import overlapping_shares, state_from_shares, state_of_whole

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, in the folder of the run."""
MAY_DIFFER = ("device", "dropped", "norm_limits", "prefetch")
"""Fields of a config that do not change which run it is, at any depth."""
_LONGEST = 60
"""Characters of a value in a message."""


def share_name(number: int) -> str:
    """Returns the folder of a share of the data, beside the checkpoint of the whole."""
    return f"share_{number}"


def dictionary_name(number: int, latents: int | None = None) -> str:
    """Returns the folder of a dictionary, or of a share of its latents."""
    return f"dictionary_{number}" if latents is None else f"dictionary_{number}_latents_{latents}"


class Resumed:
    """A checkpoint that was read.

    Raises:
        CheckpointError: It is damaged.
    """

    def __init__(self, checkpoint: Checkpoint, world: Ranks = ALONE):
        self.path, self.step = checkpoint
        self._state = read_checkpoint(checkpoint.path)
        self._run: dict[str, Any] = read_manifest(checkpoint.path)["facts"]
        self.n_tokens: int = self._state["n_tokens"]
        self.normalizers: list[Any] = self._state["normalizers"]
        self.patience: dict[str, Any] = self._state["patience"]
        self.loggers: dict[str, Any] = self._state["loggers"]
        self.n_shares: int = self._state.get("n_shares", 1)
        """Shares of the data: the ranks of the run when it was started."""
        for number, name in enumerate(self._state.get("parts", ())):
            self._check_part(name, number % world.size == world.rank)
        self._data: dict[int, Any] = {}
        self._random: dict[str, Any] = self._state["random"]
        if self._state["data"] is None and self.n_shares % world.size == 0:  # refused later, if not
            each = self.n_shares // world.size
            own = range(world.rank * each, (world.rank + 1) * each)
            parts = {n: read_checkpoint(self._part(share_name(n))) for n in own}
            self._data = {n: part["data"] for n, part in parts.items()}
            self._random = parts[own.start].get("random", self._random)  # ranks draw apart
        self._allowed: list[str] = []
        self._steps = self._run.get("steps")
        """Steps of the run that goes on."""
        self.evaluation: dict[str, Any] = self._state.get("evaluation", {})  # older checkpoints have none

    @property
    def seeds(self) -> list[int | None]:
        """The seed of each dictionary, also of those that were given none."""
        return [settings.get("seed") for settings in self._run["trainers"]]

    def check(self, now: Mapping[str, Any], allowed: Iterable[str]) -> None:
        """Compares a run, as `describe_run` returns it, with the one of the checkpoint.

        Args:
            now: The run.
            allowed: Names of fields that may differ.

        Raises:
            ConfigError: They differ.
        """
        if isinstance(allowed, str):
            raise ConfigError(f"Got allow_changed={allowed!r}; give a list of names, such as ['steps'].")
        names = {*allowed, *MAY_DIFFER}
        known = _keys(self._run) | _keys(now)
        for name in names - {*MAY_DIFFER}:
            if name not in known:
                raise UnknownNameError("setting in allow_changed", str(name), known)
        self._steps = steps = now.get("steps", self.step)
        if steps < self.step:
            raise ConfigError(f"'{self.path}' was written after step {self.step}, and the run has {steps} steps.")
        found = differences(self._run, now)
        self._allowed = sorted(set(allowed) & {part for place, *_ in found for part in _parts(place)})
        changes = [
            f"{place}: {_short(old)}, now {_short(new)}" for place, old, new in found if not names & _parts(place)
        ]
        if changes:
            raise ConfigError(
                f"The checkpoint '{self.path}' is of another run ({'; '.join(changes[:6])}). Use the settings it was "
                "made with, name what may differ in allow_changed, or give another folder."
            )

    def load_trainers(self, jobs: Sequence[TrainingJob]) -> None:
        """Puts the trainers into the state of the checkpoint, and nothing else."""
        for job in jobs:
            trainer, figures = self._trainer(job)
            job.trainer.load_state_dict(trainer)
            job.trainer.figures_before = figures

    def load(self, jobs: Sequence[TrainingJob], stream: Stream) -> None:
        """Puts trainers, data and random numbers into the state of the checkpoint.

        Raises:
            ConfigError: What was changed needs another state than the checkpoint has.
        """
        try:
            self._load(jobs, stream)
        except Exception as error:
            if not self._allowed:
                raise
            raise ConfigError(
                f"The state of '{self.path}' does not fit what changed ({', '.join(self._allowed)}): {said(error)} "
                "Start another run with these settings, from the trained dictionary by finetune=, or change less."
            ) from error
        if self.step == self._steps:
            logger.info("The run is finished already, at step %d ('%s').", self.step, shown(self.path))
            return
        logger.info("Resumes after step %d, from '%s'.", self.step, shown(self.path))
        if self._steps != (before := self._run.get("steps")):
            rates = [
                (job.name, float(job.trainer.figures_before["lr"]), job.trainer.learning_rate(self.step))
                for job in jobs
            ]
            told = ", ".join(f"{name} {old:.2g}, then {new:.2g}" for name, old, new in rates if old != new)
            logger.info(
                "Schedules are those of %s steps from here on, and were of %s. Learning rates: %s.",
                self._steps,
                before,
                told,
            )

    def _load(self, jobs: Sequence[TrainingJob], stream: Stream) -> None:
        for job in jobs:
            if job.trainer.settings.grad_acc_steps != self._run["trainers"][job.number]["grad_acc_steps"]:
                raise ConfigError("its steps are of another number of batches")
        self.load_trainers(jobs)
        if isinstance(stream, SpreadStream):
            stream.load_state_dicts(self._data)
        else:
            stream.load_state_dict(self._state["data"])
        set_random_state(self._random)

    def _check_part(self, name: str, whole: bool) -> None:
        """Checks that a part was written with this checkpoint; of several ranks, one reads it.

        Raises:
            CheckpointError: It is missing, damaged, or of another time at this step.
        """
        facts = read_manifest(self._part(name))["facts"]
        if facts.get("mark") != self._state.get("mark"):
            raise CheckpointError(f"'{self._part(name)}' and '{self.path}' were not written together.")
        if whole:
            check_files(self._part(name))

    def _part(self, name: str) -> Path:
        return self.path.parent / name / f"step_{self.step}"

    def _trainer(self, job: TrainingJob) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the state of a trainer for the latents that it holds, and its last figures."""
        number, trainer, n_slices = job.number, job.trainer, self._state.get("latent_shares", 1)
        if self._state["trainers"] is not None:
            state, figures = self._state["trainers"][number], self._state["figures"][number]
        elif n_slices == 1:
            part = read_checkpoint(self._part(dictionary_name(number)))
            state, figures = part["trainer"], part["figures"]
        else:
            own = overlapping_shares(trainer, n_slices)
            parts = [read_checkpoint(self._part(dictionary_name(number, one))) for one in own]
            return state_from_shares([part["trainer"] for part in parts], trainer), parts[0]["figures"]
        return state if trainer.latent_ranks.size == 1 else state_of_whole(state, trainer), figures


def checkpoints_at(place: Path) -> list[Checkpoint]:
    """Returns the complete checkpoints of a run; or the one whose folder it is."""
    found = complete_checkpoints(place / CHECKPOINTS) or complete_checkpoints(place)
    return found or [c for c in complete_checkpoints(place.parent) if c.path == place]


def shares_of(place: Path) -> int | None:
    """Returns the shares of the data of a run or checkpoint; None if there is no checkpoint."""
    found = checkpoints_at(place)
    return read_manifest(found[-1].path)["facts"].get("n_shares", 1) if found else None


def _parts(place: str) -> set[str]:
    """Returns the names in a place such as `trainers[0].lr`."""
    return set(place.replace("[", ".").replace("]", "").split("."))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _keys(tree: Any) -> set[str]:
    """Returns every key of a tree of JSON values."""
    inside = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ()
    return (set(tree) if isinstance(tree, Mapping) else set()).union(*map(_keys, inside))
