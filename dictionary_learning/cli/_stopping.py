"""A command that a signal stops ends in one way at any moment, and says what goes on."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dictionary_learning._run_folder import COMMAND
from dictionary_learning._secrets import without_secrets
from dictionary_learning._shell_words import option, place
from dictionary_learning._stop_request import ending_at_once, interrupt_behind
from dictionary_learning._what_is import checkpoint_steps, is_open
from dictionary_learning.cli._parser import IMPORT, modules_in, option_of
from dictionary_learning.errors import Stopped

if TYPE_CHECKING:
    from dictionary_learning.cli._train_options import TrainArguments


@contextlib.contextmanager
def saying_what_goes_on(tell: Callable[[], tuple[str, Sequence[str]]]) -> Generator[None]:
    """Makes a signal inside a `with` block raise `Stopped` with the command that goes on.

    Args:
        tell: Returns what is saved, as a sentence or "", and the words after `dictionary-learning`;
            no words for the same ones.

    Raises:
        Stopped: A signal came, or a run has answered it.
    """
    try:
        with ending_at_once():
            yield
    except BaseException as error:
        interrupt = interrupt_behind(error)
        if interrupt is None or getattr(interrupt, "command", ()):  # told already, of a later moment
            raise
        said = interrupt.said if isinstance(interrupt, Stopped) else "Interrupted."
        saved, words = tell()
        stopped = Stopped(" ".join(filter(None, (said, saved))))
        stopped.command = ["dictionary-learning", *words] if words else ()
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
        return f"The dictionaries are saved in '{folder}'.", finishing(folder, arguments)
    if not (has_begun and checkpoint_steps(folder)):  # what is there is of another run
        if arguments.overwrite:
            return "", resuming(folder, ["--overwrite"])
        if arguments.resume_from is not None:
            return "", resuming(folder, option("--resume-from", arguments.resume_from))
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
    return [*(COMMAND.get() or ()), "--save-dir", place(folder), *start]


def finishing(folder: str | os.PathLike[str], arguments: "TrainArguments", elsewhere: Sequence[Path] = ()) -> list[str]:
    """Returns the words that give a run that has trained the report that it lacks.

    Files of other packages say neither text nor model: there the run itself goes on.
    """
    is_own = arguments.save_format == "own" or elsewhere
    return evaluating(folder, arguments, elsewhere) if is_own else resuming(folder)


def evaluating(
    folder: str | os.PathLike[str], arguments: "TrainArguments", elsewhere: Sequence[Path] = ()
) -> list[str]:
    """Returns the words that evaluate the dictionaries of a run in own files as it would do.

    Args:
        folder: The folder of the run.
        arguments: Its options.
        elsewhere: The places of all its dictionaries, where the folder has not all of them.
    """
    words = _differing(arguments, options_of_evaluations())
    read = _reading("evaluate", elsewhere or (folder,), arguments)
    return [*read, *words, *([] if elsewhere else ["--save-dir", place(folder)])]


def options_of_evaluations() -> list[str]:
    """Returns the options of `train` on what its evaluation measures, and on how much text."""
    from dictionary_learning._text_reading import ContextReading, TextReading
    from dictionary_learning.cli._evaluate import EvaluateArguments
    from dictionary_learning.cli._model_options import ModelArguments
    from dictionary_learning.cli._train_options import TrainArguments

    names = [[field.name for field in dataclasses.fields(one)] for one in (EvaluateArguments, TrainArguments)]
    elsewhere = {
        field.name for one in (ModelArguments, TextReading, ContextReading) for field in dataclasses.fields(one)
    }
    elsewhere |= {"model", "data", "sites", "save_dir", "ctx_len", *EvaluateArguments.aliases.values()}
    return [*EvaluateArguments.aliases, *(name for name in names[0] if name in names[1] and name not in elsewhere)]


def showing(folder: Path, arguments: "TrainArguments") -> list[str]:
    """Returns the words that write pages of the latents of a run in own files."""
    return [*_reading("dashboard", (folder,), arguments), "--save-dir", place(folder / "latents")]


def _reading(command: str, places: Sequence[str | os.PathLike[str]], arguments: "TrainArguments") -> list[str]:
    """Returns the words of a command that reads the model and the held-out text of a run.

    Both are in the files of its dictionaries; said again is what is not read by these alone.
    """
    from dictionary_learning._trained_on import TrainedText, reading_of
    from dictionary_learning.cli._model_options import ModelArguments
    from dictionary_learning.cli._trust import said_again

    imported = [word for module in modules_in(COMMAND.get() or ())[0] for word in option(IMPORT, module)]
    words = [*imported, command, *map(place, places)]
    if arguments.model is None:  # activations tell nothing of both
        return words
    told = {name: _without_secrets(value) for name, value in arguments.to_dict().items()}
    text = TrainedText(told["data"], reading_of(told), arguments.held_out_every)
    of_models = [field.name for field in dataclasses.fields(ModelArguments)]
    return [*words, *said_again(told["model"], text), *_differing(arguments, of_models)]


def _differing(arguments: "TrainArguments", names: Iterable[str]) -> list[str]:
    """Returns the options whose values are not what `evaluate` takes by default."""
    from dictionary_learning.cli._evaluate import EvaluateArguments

    defaults, aliases = (
        {field.name: field.default for field in dataclasses.fields(EvaluateArguments)},
        EvaluateArguments.aliases,
    )
    values = {name: getattr(arguments, name) for name in names}
    told = {n: v for n, v in values.items() if v is not None and v != defaults[aliases.get(n, n)]}
    return [word for name, value in told.items() for word in option(option_of(name), *_words(value))]


def _words(value: Any) -> list[str]:
    found: Any = _without_secrets(value)
    if isinstance(found, list):
        return [str(one) for one in cast("list[Any]", found)]
    return [str(found).lower() if isinstance(found, bool) else str(found)]


def _without_secrets(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_without_secrets(one) for one in cast("Sequence[Any]", value)]
    return without_secrets(value) if isinstance(value, str) else value
