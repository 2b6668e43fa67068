"""Exact resume of a run: what a checkpoint holds, and how a run goes on from it.

A checkpoint is written between two steps, when no dictionary holds gradients of a part of a step.
It has the state of every trainer, of the data, of the random numbers and of the normalizers, so
that a run goes on with the bits that it would have had.

Several ranks write what is their own into checkpoints beside it: `share_<n>` for each share of the
data, and `dictionary_<n>` where dictionaries are spread. A step counts if all of them are there.
Ranks read what they need, so the run may go on with another number of them.
"""

import contextlib
import logging
import os
import random
import secrets
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
    check_files,
    complete_checkpoints,
    read_checkpoint,
    read_manifest,
    remove_checkpoints,
    remove_incomplete,
    write_checkpoint,
)
from dictionary_learning._disk import remove_unfinished
from dictionary_learning._plain import differences, to_plain
from dictionary_learning._run_setup import Stream, TrainingJob
from dictionary_learning.activations._normalizers import saved_normalizers
from dictionary_learning.activations._spread import SpreadStream
from dictionary_learning.config import BaseConfig
from dictionary_learning.errors import CheckpointError, ConfigError, UnknownNameError
from dictionary_learning.parallel import ALONE, SINGLE, Placement, Ranks, on_first
from dictionary_learning.trainers._latent_state import (
    overlapping_shares,
    state_from_shares,
    state_in_share,
    state_of_whole,
)

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, in the folder of the run."""
_LONGEST = 60
"""Characters of a value in a message."""
MAY_DIFFER = ("device", "dropped", "norm_limits", "prefetch")
"""Fields of a config that do not change which run it is, at any depth."""


def _share(number: int) -> str:
    return f"share_{number}"


def _dictionary(number: int, latents: int | None = None) -> str:
    return f"dictionary_{number}" if latents is None else f"dictionary_{number}_latents_{latents}"


class RunCheckpoints:
    """The checkpoints of one run, written by a thread while the run goes on.

    Leaving its `with` block waits for the thread, unless a second Ctrl-C ends the run.

    Args:
        folder: The folder of the run.
        keep_last: The number of newest checkpoints that stay.
        keep: Steps whose checkpoints stay too.
        world: The ranks of the run.
    """

    def __init__(self, folder: Path, keep_last: int, keep: frozenset[int] = frozenset(), world: Ranks = ALONE):
        self.world = world
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
        stream: Stream,
        run: Mapping[str, Any],
        further: Mapping[str, Any],
        placement: Placement = SINGLE,
    ) -> None:
        """Copies the state after a step, and starts to write it. A failure costs a warning.

        `further` are the states of the patience, the loggers and the evaluation.
        """
        self.wait()  # one at a time: no more than one copy is held
        # figures are asked for on all ranks, which they wait for
        latent = placement.latent
        states = [state_in_share(t) if latent.size > 1 else t.state_dict() for t in (job.trainer for job in jobs)]
        trainers = [
            {"trainer": state, "figures": job.trainer.metrics()} for state, job in zip(states, jobs, strict=True)
        ]
        normalizers = placement.dictionary.collect(saved_normalizers(job.normalizers for job in jobs))
        spread = placement.is_divided
        state = {
            "n_tokens": n_tokens,
            **further,
            "trainers": None if spread else [one["trainer"] for one in trainers],
            "figures": None if spread else [one["figures"] for one in trainers],
            "normalizers": [one for of_rank in normalizers for one in of_rank],
            "data": None if isinstance(stream, SpreadStream) else stream.state_dict(),
            "random": _random_state(),
        }
        mark: dict[str, Any] = {}
        parts: dict[str, Mapping[str, Any]] = {}
        if isinstance(stream, SpreadStream):
            names = [_share(n) for n in range(stream.n_shares)]
            slices = range(latent.size) if latent.size > 1 else [None]
            names += [_dictionary(n, one) for n in range(len(run["trainers"])) for one in slices] if spread else []
            mark = {"mark": self.world.share(secrets.token_hex(8))}
            state |= {"n_shares": stream.n_shares, "parts": names, "latent_shares": latent.size, **mark}
            parts |= {_share(n): {"data": one, "random": state["random"]} for n, one in stream.state_dicts().items()}
        if spread and placement.data.is_first:  # others have the same
            own = latent.rank if latent.size > 1 else None
            parts |= {_dictionary(job.number, own): one for job, one in zip(jobs, trainers, strict=True)}
        if self.world.is_first:
            parts[""] = state  # last: it stands for the whole
        try:
            packed = {name: Packed.of(part) for name, part in parts.items()}
            given = (step, packed, {name: mark if name else run for name in parts})
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

    def _write(self, step: int, parts: Mapping[str, Packed], facts: Mapping[str, Mapping[str, Any]]) -> None:
        try:
            for name, state in parts.items():
                write_checkpoint(self.root / name, step, state, facts[name])
            for name in parts:
                # a part of one more: the whole may not be written yet
                remove_checkpoints(self.root / name, self.keep_last + bool(name), self.keep)
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
        # of one rank's view of the disk, for all
        found = self.world.share(on_first(self.world, lambda: self._found(resume)) or [])
        if resume == "auto" and not found:
            return None
        for checkpoint in reversed(found):
            resumed = None
            try:
                resumed = Resumed(Checkpoint(*checkpoint), self.world)
            except CheckpointError as error:
                logger.warning("%s The one before it is tried.", error)
            if not self.world.total(int(resumed is None)):  # all ranks can read it
                return resumed
        where = resume if resume != "auto" else self.root
        raise CheckpointError(
            f"There is no complete checkpoint in '{where}'. Give a run that has one, or resume='never'."
        )

    def _found(self, resume: str | os.PathLike[str]) -> list[Checkpoint]:
        if resume == "auto":
            found = complete_checkpoints(self.root)
            if not found:
                finished = sorted(self.folder.glob("trainer_*/config.json"))
                if finished:
                    raise ConfigError(
                        f"'{finished[0].parent}' is finished, and its run has no checkpoint to go on from. Give "
                        "another folder, or overwrite=True without resume."
                    )
            return found
        return checkpoints_at(Path(resume))


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
            parts = {n: read_checkpoint(self._part(_share(n))) for n in own}
            self._data = {n: part["data"] for n, part in parts.items()}
            self._random = parts[own.start].get("random", self._random)  # ranks draw apart
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
                f"The state of '{self.path}' does not fit what changed ({', '.join(self._allowed)}): {error}. Start "
                "another run with these settings, from the trained dictionary by finetune=, or change less."
            ) from error
        logger.info("Resumes after step %d, from '%s'.", self.step, self.path)

    def _load(self, jobs: Sequence[TrainingJob], stream: Stream) -> None:
        for job in jobs:
            if job.trainer.settings.grad_acc_steps != self._run["trainers"][job.number]["grad_acc_steps"]:
                raise ConfigError("its steps are of another number of batches")
        self.load_trainers(jobs)
        if isinstance(stream, SpreadStream):
            stream.load_state_dicts(self._data)
        else:
            stream.load_state_dict(self._state["data"])
        _set_random_state(self._random)

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
            part = read_checkpoint(self._part(_dictionary(number)))
            state, figures = part["trainer"], part["figures"]
        else:
            own = overlapping_shares(trainer, n_slices)
            parts = [read_checkpoint(self._part(_dictionary(number, one))) for one in own]
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


def all_trainers(jobs: Sequence[TrainingJob], placement: Placement) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns names and settings of the dictionaries of all ranks, in their order."""
    found = placement.of_all((job.number, (job.name, job.trainer.config)) for job in jobs)
    return [name for name, _ in found], [config for _, config in found]


def describe_run(names: Sequence[str], trainers: Sequence[Any], stream: Stream, run: Mapping[str, Any]) -> Any:
    """Returns what makes a run this one, as JSON values: trainers, settings, data.

    Args:
        names: The dictionaries' names.
        trainers: Their settings.
        stream: The data.
        run: Further facts.

    Raises:
        ConfigError: The data's `config` holds what JSON cannot hold, and could not be saved.
    """
    data = getattr(stream.data, "config", None)
    found = {
        "names": list(names),
        "trainers": list(trainers),
        "data": data.to_dict() if isinstance(data, BaseConfig) else data,
        **({"n_shares": stream.n_shares} if isinstance(stream, SpreadStream) else {}),
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
