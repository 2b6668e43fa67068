"""What a run leaves, and when: its log, its checkpoints and its dictionaries."""

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, runtime_checkable

import torch

from dictionary_learning._border import check
from dictionary_learning._disk import shown
from dictionary_learning._resume import RunCheckpoints
from dictionary_learning._run_setup import TrainingJob
from dictionary_learning._saving import exported, save_all, untrained
from dictionary_learning._stop_request import StopRequest
from dictionary_learning._watch import Answer, Patience, Watch
from dictionary_learning.activations._spread import Stream
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries._serialization import nonfinite_names
from dictionary_learning.errors import ConfigError, DivergenceError, Interrupted
from dictionary_learning.interop._base import writable_format
from dictionary_learning.loggers import ConsoleLogger, LoggerGroup
from dictionary_learning.parallel import SINGLE, Placement

_PROGRESS_EVERY = 10
"""Steps between two updates of the progress bar."""
_MOST_ROLLBACKS = 3
"""Rollbacks to one checkpoint, after which a run is given up."""

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """When a run logs and saves."""

    steps: int
    log_steps: int
    checkpoint_steps: int | None
    backup_steps: int | None
    save_steps: frozenset[int]
    on_anomaly: Answer
    patience: int | None
    evaluate_every: int | None = None
    save_best: str | Mapping[str, str] | None = None
    save_format: str = "own"

    @property
    def saves(self) -> bool:
        """Whether anything is saved before the end."""
        return bool(self.save_steps or self.checkpoint_steps or self.save_best)

    def wants_checkpoint(self, step: int) -> bool:
        """Returns whether a checkpoint is due: at its period, chosen steps and the end."""
        every = self.checkpoint_steps
        return every is not None and (step % every == 0 or step in (*self.save_steps, self.steps))


@runtime_checkable
class HeldOutEvaluation(Protocol):
    """What evaluates a run on held-out data."""

    def after_step(self, step: int, n_tokens: int) -> None:
        """Evaluates if this step is one of those; a failure costs a warning."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a run that is resumed goes on with."""
        ...


class RunOutput:
    """What a run leaves: its log, its checkpoints and its dictionaries."""

    def __init__(
        self,
        plan: Plan,
        jobs: Sequence[TrainingJob],
        stream: Stream,
        run_cfg: Mapping[str, Any] | None,
        checkpoints: RunCheckpoints | None,
        run: Mapping[str, Any],
        sink: LoggerGroup,
        console: ConsoleLogger | None,
        stop: StopRequest,
        placement: Placement = SINGLE,
        evaluation: HeldOutEvaluation | None = None,
    ):
        self.placement = placement
        self.plan, self.jobs, self.stream, self.run_cfg = plan, jobs, stream, run_cfg
        self.n_elsewhere = 0
        """How many dictionaries of the last export could not be written into the folder."""
        self.checkpoints, self.run, self.sink, self.console, self.stop = checkpoints, run, sink, console, stop
        self.evaluation = evaluation
        self.watch, self.patience = Watch(jobs), Patience(plan.patience)
        self.is_over = False
        """Whether the run ends before its last step, since nothing improves."""
        self._is_due = False
        self._rolled_back: Counter[int] = Counter()

    def after_step(self, step: int, n_tokens: int) -> tuple[int, int]:
        """Logs, saves and answers anomalies as planned.

        Returns:
            The step after which the run goes on, and its tokens: earlier ones after a rollback.

        Raises:
            DivergenceError: An anomaly stops the run.
            Interrupted: A signal stopped the run.
        """
        plan = self.plan
        anomalies, is_hopeless = self._anomalies(step, n_tokens)
        if is_hopeless or (anomalies and plan.on_anomaly == "stop"):
            self._give_up(step, anomalies or ["no step for long"])
        if anomalies and plan.on_anomaly == "rollback" and (found := self._roll_back(step, anomalies)):
            return found
        if step % plan.log_steps == 0 or step == plan.steps:
            figures = dict(self.placement.of_all((job.number, (job.name, figures_of(job))) for job in self.jobs))
            self.sink.log(figures, step, n_tokens)
            if self.patience.has_run_out(figures):
                logger.warning(
                    "No FVU improved in %d logs: the run ends after step %d of %d.", plan.patience, step, plan.steps
                )
                self.is_over = True
        if self.evaluation is not None:
            self.evaluation.after_step(step, n_tokens)
        if self.console is not None and (step % _PROGRESS_EVERY == 0 or step == plan.steps):
            self.console.advance(step, n_tokens)
        if step in plan.save_steps:
            self.export(f"checkpoints/step_{step}")
        if plan.backup_steps and step % plan.backup_steps == 0:
            self.export("checkpoints/latest")
        self._is_due |= plan.wants_checkpoint(step)
        # a stop comes as a checkpoint does, between two whole steps; of one rank, on all
        stops = bool(self.placement.world.total(int(self.stop.signal is not None)))
        is_open = not all(job.trainer.is_between_steps for job in self.jobs)
        # of no rank's dictionaries: ranks save together, and may have others
        if (self._is_due or stops) and not self.placement.world.total(int(is_open)):
            assert self.checkpoints is not None
            further = {"patience": self.patience.state_dict(), "loggers": self.sink.state_dict()}
            if self.evaluation is not None:
                further["evaluation"] = self.evaluation.state_dict()
            self.checkpoints.save(step, n_tokens, self.jobs, self.stream, self.run, further, self.placement)
            self._is_due = False
            if stops:
                if self.placement.world.total(int(not self.checkpoints.wait())):
                    self.export()
                raise Interrupted(step, plan.steps, shown(self.checkpoints.folder))
        return step, n_tokens

    @contextlib.contextmanager
    def kept_if_it_fails(self, step: int) -> Generator[None]:
        """Saves the dictionaries where data or a step raise, before the error goes on.

        Also where they raise KeyboardInterrupt or SystemExit. A second Ctrl-C ends the run at once.

        Raises:
            Interrupted: They raise KeyboardInterrupt, and there is a checkpoint to go on from.
        """
        try:
            yield
        except BaseException as error:
            is_second = isinstance(error, KeyboardInterrupt) and self.stop.signal is not None
            # of what is on several ranks, nothing can be asked for now
            if self.checkpoints is None or not step or self.placement.is_divided or is_second:
                raise
            self.export()
            self.sink.close()
            logger.error(
                "%s after step %d of %d; the dictionaries as they are were saved in '%s'.",
                type(error).__name__, step, self.plan.steps, self.checkpoints.folder,
            )  # fmt: skip
            if isinstance(error, KeyboardInterrupt) and (newest := self.checkpoints.newest_step()) is not None:
                raise Interrupted(newest, self.plan.steps, shown(self.checkpoints.folder)) from error
            raise

    def _anomalies(self, step: int, n_tokens: int) -> tuple[list[str], bool]:
        """Returns anomalies, and whether nothing can help: what one rank noticed, on all."""
        anomalies, is_hopeless = self.watch.look(step, n_tokens), self.watch.is_hopeless(step)
        told = self.placement.world.tell([len(anomalies), int(is_hopeless)])
        if any(n for n, _ in told) and not anomalies:
            anomalies = ["Another rank has found an anomaly."]
        return anomalies, all(hopeless for _, hopeless in told)

    def _give_up(self, step: int, anomalies: Sequence[str]) -> NoReturn:
        dictionaries = self.export()
        raise DivergenceError(
            f"The run stopped after step {step} of {self.plan.steps}: {'; '.join(anomalies)} Dictionaries that are "
            "finite were saved, if there is a folder, and are in this error's `dictionaries`.",
            [dictionary for dictionary in dictionaries if not nonfinite_names(dictionary)],
        )

    def _roll_back(self, step: int, anomalies: Sequence[str]) -> tuple[int, int] | None:
        """Returns to the newest checkpoint, but not in the data; None if there is none yet."""
        assert self.checkpoints is not None
        self.checkpoints.wait()
        self.placement.world.tell([0])  # others may be writing a part of the newest one
        resumed = self.checkpoints.newest("auto")
        if resumed is None:
            logger.warning("Step %d: there is no checkpoint yet to roll back to.", step)
            return None
        self._rolled_back[resumed.step] += 1
        if self._rolled_back[resumed.step] > _MOST_ROLLBACKS:
            self._give_up(step, [f"{_MOST_ROLLBACKS} rollbacks to step {resumed.step} did not help;", *anomalies])
        resumed.load_trainers(self.jobs)
        self.watch.forget()
        logger.warning("Step %d: rolled back to the checkpoint of step %d; the data go on.", step, resumed.step)
        return resumed.step, resumed.n_tokens

    def export(self, part: str = "") -> list[Dictionary]:
        """Returns the dictionaries, and saves them where there is a folder."""
        own = exported(self.jobs, self.stream.data, self.run_cfg)
        dictionaries = self.placement.of_all((job.number, one) for job, one in zip(self.jobs, own, strict=True))
        if self.checkpoints is not None and self.placement.world.is_first:
            idle = [] if part else [job.number for job in untrained(self.jobs)]
            self.n_elsewhere = len(save_all(dictionaries, self.checkpoints.folder, part, self.plan.save_format, idle))
        return dictionaries


def plan_of(
    steps: int,
    log_steps: int | None,
    checkpoint_steps: int | None,
    backup_steps: int | None,
    save_steps: Iterable[int] | None,
    on_anomaly: Answer = "skip",
    patience: int | None = None,
    evaluate_every: int | None = None,
    save_best: str | Mapping[str, str] | None = None,
    save_format: str = "own",
) -> Plan:
    """Returns the plan of a run, from the arguments of `trainSAE`."""
    if save_best is not None and evaluate_every is None:
        raise ConfigError(f"Got save_best={save_best!r}, which an evaluation decides: give evaluate_every too.")
    if on_anomaly == "rollback" and not (checkpoint_steps or backup_steps):
        raise ConfigError("on_anomaly='rollback' returns to a checkpoint: give save_dir and checkpoint_steps.")
    chosen = frozenset(check("save_steps", step, int) for step in save_steps or ())
    if chosen and max(chosen) > steps:
        raise ConfigError(f"Got save_steps up to {max(chosen)} in a run of {steps} steps; leave the later ones out.")
    every = checkpoint_steps or backup_steps
    log_steps = log_steps or max(1, steps // 100)
    writable_format(save_format)  # refuses an unknown one
    return Plan(
        steps, log_steps, every, backup_steps, chosen, on_anomaly, patience, evaluate_every, save_best, save_format
    )


def check_accumulation(grad_acc_steps: Iterable[int], plan: Plan) -> None:
    """Refuses a run in which no checkpoint would be due between whole steps of all dictionaries.

    Raises:
        ConfigError: Their accumulated steps end together after the run only.
    """
    periods = sorted(set(grad_acc_steps))
    if math.lcm(*periods) > plan.steps:
        raise ConfigError(
            f"Dictionaries with grad_acc_steps {', '.join(map(str, periods))} end a step together every "
            f"{math.lcm(*periods)} batches, and a checkpoint is written only then: the run of {plan.steps} would have "
            "none. Choose multiples of each other, or train them apart."
        )


def figures_of(job: TrainingJob) -> dict[str, float]:
    """Returns a trainer's figures of its last step as numbers."""
    figures = job.trainer.metrics()
    # one wait for the device for all figures of a dictionary
    parts = [value.detach().float().to(job.trainer.device) for value in figures.values()]
    values: Any = torch.stack(parts) if parts else torch.empty(0)
    return dict(zip(figures, values.tolist(), strict=True))
