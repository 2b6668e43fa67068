"""Exact resume of a run: what a checkpoint holds, and how a run goes on from it.

A checkpoint is written between two steps, when no dictionary holds gradients of a part of a step.
It has the state of every trainer, of the data, of the random numbers and of the normalizers, so
that a run goes on with the bits that it would have had.
"""

import contextlib
import logging
import os
import random
import signal
import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch

from dictionary_learning._checkpoint import (
    Checkpoint,
    Packed,
    complete_checkpoints,
    read_checkpoint,
    read_manifest,
    remove_checkpoints,
    remove_incomplete,
    write_checkpoint,
)
from dictionary_learning._disk import remove_unfinished
from dictionary_learning._plain import differences, to_plain
from dictionary_learning._run_setup import TrainingJob
from dictionary_learning.activations._normalizers import saved_normalizers
from dictionary_learning.activations._stream import ActivationStream
from dictionary_learning.config import BaseConfig
from dictionary_learning.errors import CheckpointError, ConfigError, UnknownNameError

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, in the folder of the run."""
_LONGEST = 60
"""Characters of a value in a message."""
MAY_DIFFER = ("device", "dropped", "norm_limits", "prefetch")
"""Fields of a config that do not change which run it is, at any depth."""


class RunCheckpoints:
    """The checkpoints of one run, written by a thread while the run goes on.

    Leaving its `with` block waits for the thread, unless a second Ctrl-C ends the run.

    Args:
        folder: The folder of the run.
        keep_last: The number of newest checkpoints that stay.
        keep: Steps whose checkpoints stay too.
    """

    def __init__(self, folder: Path, keep_last: int, keep: frozenset[int] = frozenset()):
        self.folder, self.root, self.keep_last, self.keep = folder, folder / CHECKPOINTS, keep_last, keep
        self._writer: threading.Thread | None = None
        self._is_written = False

    def __enter__(self) -> "RunCheckpoints":
        # what an earlier process of this run left when it was killed; nothing deeper, where other
        # runs may be writing at this moment, if the folder is "."
        for pattern in ("", "trainer_*", f"{CHECKPOINTS}/*/trainer_*"):
            for folder in self.folder.glob(pattern) if pattern else (self.folder,):
                remove_unfinished(folder)
        remove_incomplete(self.root)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not KeyboardInterrupt:
            self.wait()

    def save(
        self,
        step: int,
        n_tokens: int,
        jobs: Sequence[TrainingJob],
        stream: ActivationStream,
        run: Mapping[str, Any],
        further: Mapping[str, Any],
    ) -> None:
        """Copies the state after a step, and starts to write it. A failure costs a warning.

        `further` are the states of the patience, the loggers and the evaluation.
        """
        self.wait()  # one at a time: no more than one copy is held
        state = {
            "n_tokens": n_tokens,
            **further,
            "trainers": [job.trainer.state_dict() for job in jobs],
            "figures": [job.trainer.metrics() for job in jobs],
            "normalizers": saved_normalizers(job.normalizers for job in jobs),
            "data": stream.state_dict(),
            "random": _random_state(),
        }
        try:
            given = (step, Packed.of(state), run)
        except CheckpointError as error:
            self._warn(step, error)
            return
        # as a daemon it does not outlive a run that is to end at once
        self._writer = threading.Thread(target=self._write, args=given, name="checkpoint", daemon=True)
        self._writer.start()

    def wait(self) -> bool:
        """Waits for the writer; returns whether the last checkpoint was written."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        return self._is_written

    def _write(self, step: int, state: Packed, run: Mapping[str, Any]) -> None:
        try:
            write_checkpoint(self.root, step, state, run)
            remove_checkpoints(self.root, self.keep_last, self.keep)
            self._is_written = True
        except Exception as error:  # noqa: BLE001  (nobody else would see it)
            self._warn(step, error)

    def _warn(self, step: int, error: Exception) -> None:
        self._is_written = False
        logger.warning("The checkpoint of step %d could not be written (%s). The run goes on.", step, error)

    def is_own(self, resume: Any) -> bool:
        """Returns whether something is resumed, and it is this run and not one in another folder.

        Raises:
            ConfigError: The argument names nothing.
        """
        if not isinstance(resume, (str, os.PathLike)) or not os.fspath(cast(Any, resume)):
            raise ConfigError(f"Got resume={resume!r}; give 'never', 'auto', or the path of a run or checkpoint.")
        place, folder = Path(resume).resolve(), self.folder.resolve()
        return resume == "auto" or (resume != "never" and folder in (place, *place.parents))

    def newest(self, resume: str | os.PathLike[str]) -> "Resumed | None":
        """Returns the state to go on from; None for "auto" without a checkpoint.

        Args:
            resume: "auto" for the newest checkpoint of this run; the folder of a run, or of one
                checkpoint.

        Raises:
            CheckpointError: There is none that is complete and undamaged.
        """
        if resume == "auto":
            found = complete_checkpoints(self.root)
            if not found:
                finished = sorted(self.folder.glob("trainer_*/config.json"))
                if finished:
                    raise ConfigError(
                        f"'{finished[0].parent}' is finished, and its run has no checkpoint to go on from. Give "
                        "another folder, or overwrite=True without resume."
                    )
                return None
        else:
            place = Path(resume)
            found = complete_checkpoints(place / CHECKPOINTS) or complete_checkpoints(place)
            found = found or [c for c in complete_checkpoints(place.parent) if c.path == place]
        for checkpoint in reversed(found):
            try:
                return Resumed(checkpoint)
            except CheckpointError as error:
                logger.warning("%s The one before it is tried.", error)
        where = resume if resume != "auto" else self.root
        raise CheckpointError(
            f"There is no complete checkpoint in '{where}'. Give a run that has one, or resume='never'."
        )


class Resumed:
    """A checkpoint that was read.

    Raises:
        CheckpointError: It is damaged.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.path, self.step = checkpoint
        self._state = read_checkpoint(checkpoint.path)
        self._run: dict[str, Any] = read_manifest(checkpoint.path)["facts"]
        self.n_tokens: int = self._state["n_tokens"]
        self.normalizers: list[Any] = self._state["normalizers"]
        self.patience: dict[str, Any] = self._state["patience"]
        self.loggers: dict[str, Any] = self._state["loggers"]
        self._allowed: list[str] = []
        self.evaluation: dict[str, Any] = self._state.get("evaluation", {})  # older checkpoints have none

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
        if (steps := now.get("steps")) is not None and steps < self.step:
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
        for job, state in zip(jobs, self._state["trainers"], strict=True):
            job.trainer.load_state_dict(state)

    def load(self, jobs: Sequence[TrainingJob], stream: ActivationStream) -> None:
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
                f"The state of '{self.path}' does not fit what changed ({', '.join(self._allowed)}): {error}. Start "
                "another run with these settings, from the trained dictionary by finetune=, or change less."
            ) from error
        logger.info("Resumes after step %d, from '%s'.", self.step, self.path)

    def _load(self, jobs: Sequence[TrainingJob], stream: ActivationStream) -> None:
        for job, config in zip(jobs, self._run["trainers"], strict=True):
            if job.trainer.settings.grad_acc_steps != config["grad_acc_steps"]:
                raise ConfigError("its steps are of another number of batches")
        self.load_trainers(jobs)
        for job, figures in zip(jobs, self._state["figures"], strict=True):
            job.trainer.figures_before = figures
        stream.load_state_dict(self._state["data"])
        _set_random_state(self._state["random"])


def describe_run(jobs: Sequence[TrainingJob], stream: ActivationStream, run: Mapping[str, Any]) -> Any:
    """Returns what makes a run this one, as JSON values: trainers, settings, data.

    Raises:
        ConfigError: The data's `config` holds what JSON cannot hold, and could not be saved.
    """
    data = getattr(stream.data, "config", None)
    found = {
        "names": [job.name for job in jobs],
        "trainers": [job.trainer.config for job in jobs],
        "data": data.to_dict() if isinstance(data, BaseConfig) else data,
        "widths": {str(site): width for site, width in stream.widths.items()},
        **run,
    }
    return to_plain(found, "the run")


class StopRequest:
    """Notices SIGTERM and Ctrl-C inside a `with` block; a second Ctrl-C ends the process at once.

    Signals reach the main thread alone: elsewhere this does nothing. `is_on` is false for runs that
    have no folder for a checkpoint.
    """

    def __init__(self, is_on: bool) -> None:
        self.signal: signal.Signals | None = None
        self._is_on = is_on and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if self._is_on:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        logger.warning("Got %s: the run stops after this step, and writes a checkpoint.", self.signal.name)


@contextlib.contextmanager
def kept_random_state() -> Generator[None]:
    """Puts all random numbers back where they were when its `with` block ends."""
    state = _random_state()
    try:
        yield
    finally:
        _set_random_state(state)


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (a user's own method may draw from it)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
    }


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002


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
