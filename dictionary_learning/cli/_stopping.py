"""A command that a signal stops ends in one way at any moment, and says what goes on."""

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dictionary_learning._run_folder import COMMAND
from dictionary_learning._stop_request import ending_at_once, interrupt_behind
from dictionary_learning._what_is import checkpoint_steps, is_open
from dictionary_learning.errors import ConfigError, Stopped

if TYPE_CHECKING:
    from dictionary_learning.cli._train_options import TrainArguments


@contextlib.contextmanager
def saying_what_goes_on(tell: Callable[[], tuple[str, Sequence[str]]]) -> Generator[None]:
    """Makes a signal inside a `with` block raise `Stopped` with the command that goes on.

    Args:
        tell: Returns what is saved, as a sentence or "", and the words after `dictionary-learning`.

    Raises:
        Stopped: A signal came, or a run has answered it.
    """
    try:
        with ending_at_once():
            yield
    except BaseException as error:
        if (interrupt := interrupt_behind(error)) is None:
            raise
        said = interrupt.said if isinstance(interrupt, Stopped) else "Interrupted."
        saved, words = tell()
        stopped = Stopped(" ".join(filter(None, (said, saved))))
        stopped.command = ["dictionary-learning", *words]
        raise stopped from error


def what_goes_on(arguments: "TrainArguments", folder: Path, before: int | None) -> tuple[str, list[str]]:
    """Returns what is saved of a run that was stopped at any moment, and the command that goes on.

    Args:
        arguments: The options.
        folder: The folder of the run.
        before: The stamp of the run that the folder held at the start.
    """
    has_begun = stamp_of(folder) not in (None, before)
    if has_begun and not is_open(folder):
        return f"The dictionaries are saved in '{folder}'.", evaluating(folder, arguments)
    if not (has_begun and checkpoint_steps(folder)):  # what is there is of another run
        if arguments.overwrite:
            return "", resuming(folder, ["--overwrite"])
        if arguments.resume_from is not None:
            return "", resuming(folder, ["--resume-from", arguments.resume_from])
    return "", resuming(folder)


def stamp_of(folder: Path) -> int | None:
    """Returns what tells the record of a run from later ones; None without one."""
    from dictionary_learning._provenance import RUN

    try:
        return (folder / RUN).stat().st_mtime_ns
    except OSError:
        return None


def resuming(folder: str | os.PathLike[str], start: Sequence[str] = ("--resume",)) -> list[str]:
    """Returns the words of this command with its folder, and how it starts there."""
    return [*(COMMAND.get() or ()), "--save-dir", str(folder), *start]


def evaluating(folder: str | os.PathLike[str], arguments: "TrainArguments") -> list[str]:
    """Returns the words that evaluate the dictionaries of a run.

    Model and text are in their files; said again is what `evaluate` would not read by these alone.
    """
    from dictionary_learning._trained_on import check_named

    words = ["evaluate", str(folder)]
    if arguments.model is None:  # activations tell nothing of both
        return words
    for what, option, name in (("model", "--model", arguments.model), ("text", "--data", arguments.data)):
        try:
            check_named(what, option, name)
        except ConfigError:
            words += [option, str(name)]
    return words
