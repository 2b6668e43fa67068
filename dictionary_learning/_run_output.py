"""What a run leaves, and when: its log, its checkpoints and its dictionaries."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from dictionary_learning._border import check
from dictionary_learning._resume import RunCheckpoints, StopRequest
from dictionary_learning._run_setup import TrainingJob
from dictionary_learning._saving import exported, save_all
from dictionary_learning.activations._stream import ActivationStream
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, Interrupted
from dictionary_learning.loggers import ConsoleLogger, LoggerGroup

_PROGRESS_EVERY = 10
"""Steps between two updates of the progress bar."""


class Plan(NamedTuple):
    """When a run logs and saves."""

    steps: int
    log_every: int
    checkpoint_every: int | None
    backup_every: int | None
    save_at: frozenset[int]

    @property
    def saves(self) -> bool:
        """Whether anything is saved before the end."""
        return bool(self.save_at or self.checkpoint_every)

    def wants_checkpoint(self, step: int) -> bool:
        """Returns whether a checkpoint is due: at its period, chosen steps and the end."""
        every = self.checkpoint_every
        return every is not None and (step % every == 0 or step in (*self.save_at, self.steps))


class RunOutput:
    """What a run leaves: its log, its checkpoints and its dictionaries."""

    def __init__(
        self,
        plan: Plan,
        jobs: Sequence[TrainingJob],
        stream: ActivationStream,
        run_cfg: Mapping[str, Any] | None,
        checkpoints: RunCheckpoints | None,
        run: Mapping[str, Any],
        sink: LoggerGroup,
        console: ConsoleLogger | None,
        stop: StopRequest,
    ):
        self.plan, self.jobs, self.stream, self.run_cfg = plan, jobs, stream, run_cfg
        self.checkpoints, self.run, self.sink, self.console, self.stop = checkpoints, run, sink, console, stop
        self._is_due = False

    def after_step(self, step: int, n_tokens: int) -> None:
        """Logs and saves as planned.

        Raises:
            Interrupted: a signal stopped the run.
        """
        plan = self.plan
        if step % plan.log_every == 0 or step == plan.steps:
            self.sink.log({job.name: figures_of(job) for job in self.jobs}, step, n_tokens)
        if self.console is not None and (step % _PROGRESS_EVERY == 0 or step == plan.steps):
            self.console.advance(step, n_tokens)
        if step in plan.save_at:
            self.export(f"checkpoints/step_{step}")
        if plan.backup_every and step % plan.backup_every == 0:
            self.export("checkpoints/latest")
        self._is_due |= plan.wants_checkpoint(step)
        # a stop comes as a checkpoint does, between two whole steps
        if (self._is_due or self.stop.signal) and all(job.trainer.is_between_steps for job in self.jobs):
            assert self.checkpoints is not None
            is_saved = self.checkpoints.save(step, n_tokens, self.jobs, self.stream, self.run)
            self._is_due = False
            if self.stop.signal:
                if not is_saved:
                    self.export()
                raise Interrupted(step, plan.steps, str(self.checkpoints.folder))

    def export(self, part: str = "") -> list[Dictionary]:
        """Returns the dictionaries, and saves them where there is a folder."""
        dictionaries = exported(self.jobs, self.stream.data, self.run_cfg)
        if self.checkpoints is not None:
            save_all(dictionaries, self.checkpoints.folder, part)
        return dictionaries


def plan_of(
    steps: int,
    log_steps: int | None,
    checkpoint_steps: int | None,
    backup_steps: int | None,
    save_steps: Iterable[int] | None,
) -> Plan:
    """Returns the plan of a run, from the arguments of `trainSAE`."""
    chosen = frozenset(check("save_steps", step, int) for step in save_steps or ())
    if chosen and max(chosen) > steps:
        raise ConfigError(f"Got save_steps up to {max(chosen)} in a run of {steps} steps; leave the later ones out.")
    log_every = log_steps or max(1, steps // 100)
    return Plan(steps, log_every, checkpoint_steps or backup_steps, backup_steps, chosen)


def figures_of(job: TrainingJob) -> dict[str, float]:
    """Returns a trainer's figures of its last step as numbers."""
    figures = job.trainer.metrics()
    # one wait for the device for all figures of a dictionary
    parts = [value.detach().float().to(job.trainer.device) for value in figures.values()]
    values: Any = torch.stack(parts) if parts else torch.empty(0)
    return dict(zip(figures, values.tolist(), strict=True))
