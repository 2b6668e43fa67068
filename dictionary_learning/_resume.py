"""Exact resume of a run: what a checkpoint holds, and when it is written.

A checkpoint is written between two steps, when no dictionary holds gradients of a part of a step.
It has the state of every trainer, of the data, of the random numbers and of the normalizers, so
that a run goes on with the bits that it would have had.

Several ranks write what is their own into checkpoints beside it: `share_<n>` for each share of the
data, and `dictionary_<n>` where dictionaries are spread. A step counts if all of them are there.
Ranks read what they need, so the run may go on with another number of them.
"""

import logging
import os
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from dictionary_learning._checkpoint import (
    Checkpoint,
    Packed,
    complete_checkpoints,
    remove_checkpoints,
    remove_incomplete,
    write_checkpoint,
)
from dictionary_learning._disk import remove_unfinished, settled
from dictionary_learning._plain import to_plain
from dictionary_learning._random_state import random_state
from dictionary_learning._resumed import CHECKPOINTS, Resumed, checkpoints_at, dictionary_name, share_name
from dictionary_learning._run_setup import TrainingJob
from dictionary_learning.activations._normalizers import saved_normalizers
from dictionary_learning.activations._spread import SpreadStream, Stream
from dictionary_learning.config import BaseConfig
from dictionary_learning.errors import CheckpointError, ConfigError
from dictionary_learning.parallel import ALONE, SINGLE, Placement, Ranks, on_first
from dictionary_learning.trainers._latent_state import state_in_share

logger = logging.getLogger(__name__)


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
            "random": random_state(),
        }
        mark: dict[str, Any] = {}
        parts: dict[str, Mapping[str, Any]] = {}
        if isinstance(stream, SpreadStream):
            names = [share_name(n) for n in range(stream.n_shares)]
            slices = range(latent.size) if latent.size > 1 else [None]
            names += [dictionary_name(n, one) for n in range(len(run["trainers"])) for one in slices] if spread else []
            mark = {"mark": self.world.share(secrets.token_hex(8))}
            state |= {"n_shares": stream.n_shares, "parts": names, "latent_shares": latent.size, **mark}
            parts |= {
                share_name(n): {"data": one, "random": state["random"]} for n, one in stream.state_dicts().items()
            }
        if spread and placement.data.is_first:  # others have the same
            own = latent.rank if latent.size > 1 else None
            parts |= {dictionary_name(job.number, own): one for job, one in zip(jobs, trainers, strict=True)}
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

    def newest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, once it is written; None if there is none."""
        self.wait()
        return max((found.step for found in complete_checkpoints(self.root)), default=None)

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
        if resume in ("auto", "never"):
            return resume == "auto"
        place, folder = settled(resume).resolve(), self.folder.resolve()
        return folder in (place, *place.parents)

    def newest(self, resume: str | os.PathLike[str]) -> Resumed | None:
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
