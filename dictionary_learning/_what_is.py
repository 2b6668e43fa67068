"""What a folder is that this package wrote, in words: for who gives it to a wrong command.

Only names of files and a few JSON values are looked at, so that any command can ask.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictionary_learning._shell_words import place, shown_command

IN_PYTHON = 'Go on by resume="auto" in the call that began it.'
"""How a run of Python goes on; the shell says the same, which has no option for it."""
_ENDED = ("finished", "DivergenceError")
"""How a run ends that nothing goes on from: a run that diverged would do so again."""
_PARTS = ("group", "seed")
"""Runs of a sweep, and of a benchmark on known features, are in folders of these names."""


def what_is(path: str | os.PathLike[str]) -> str:
    """Returns a sentence on a folder: what it is for or what goes on with it; "" if unknown."""
    folder = Path(path)
    if told := unfinished(folder):
        return told
    if (folder / "sweep.json").is_file():
        return f"'{folder}' is a sweep; give one of its runs, as '{folder / parts_of(folder)[0]}'."
    if any(folder.glob("trainer_*/config.json")):
        return f"'{folder}' is a run; its dictionaries are in trainer_0 and so on."
    if (folder / "contexts.safetensors").is_file():
        return f"'{folder}' is a store of contexts, which explain, dashboard and export take."
    index = _read(folder / "index.json")
    if index.get("format") == "dictionary_learning.activations":
        rest = (
            "which 'train --cache' takes"
            if index.get("complete")
            else "not finished: the command that began it goes on"
        )
        return f"'{folder}' is a cache of activations, {rest}."
    if (folder / "data" / "manifest.js").is_file():
        return f"'{folder}' holds pages of latents; open its index.html."
    if (folder / "report.json").is_file():
        return f"'{folder}' holds a report, which compare takes."
    if checkpoint_steps(folder) and not (folder / "run.json").exists():
        return (
            f"'{folder}' is a run whose run.json is missing, {where_it_is(folder)}. What began it goes on there: a "
            'command with --resume, or a call with resume="auto".'
        )
    return ""


def unfinished(folder: Path, instead: str = "") -> str:
    """Returns where an unfinished sweep or run stands, and what goes on with it; else "".

    Args:
        folder: The folder.
        instead: A sentence on what else may be done.
    """
    if (folder / "sweep.json").is_file():
        return _unfinished_sweep(folder)
    if not is_open(folder):
        return ""
    of = folder.parent
    if (of / "sweep.json").is_file():
        return f"'{folder}' is a part of a sweep, {where_it_is(folder)}. {_going_on(_command(folder), of)}"
    told = " ".join(filter(None, (instead, _going_on(_command(folder), folder))))
    return f"'{folder}' is a run that is not finished, {where_it_is(folder)}. {told}"


def is_open(folder: Path) -> bool:
    """Returns whether a run has no dictionaries yet, or was stopped on its way to further steps."""
    if not (folder / "run.json").is_file():
        return False
    sessions = _mapping(_read(folder / "run.json").get("volatile")).get("sessions")
    last = _mapping(sessions[-1]) if isinstance(sessions, list) and sessions else {}
    if last.get("outcome") in _ENDED and any(folder.glob("trainer_*")):  # in any format
        return False
    has_some = any(folder.glob("trainer_*/config.json"))
    return not has_some or bool(last and checkpoint_steps(folder))


def _unfinished_sweep(folder: Path) -> str:
    parts = parts_of(folder)
    left = [name for name in parts if not (folder / name / "finished.json").is_file()]
    if not left:
        return ""
    now = folder / left[0]
    command = next(filter(None, (_command(folder / name) for name in parts)), [])
    what = "benchmark" if command[:1] == ["benchmark"] else "sweep"
    done = f"{len(parts) - len(left)} of {len(parts)} runs finished"
    stands = f"{done}, and {now.name} is {where_it_is(now)}"
    return f"'{folder}' is a {what} that is not finished: {stands}. {_going_on(command, folder)}"


def parts_of(folder: Path) -> list[str]:
    """Returns the folders of a sweep's runs, which are there from the start of each."""
    n = max(len(_read(folder / "sweep.json").get("groups") or ()), 1)
    there = [path.name for kind in _PARTS for path in sorted(folder.glob(f"{kind}_*")) if path.is_dir()]
    return [*there, *(f"{_PARTS[0]}_{number}" for number in range(len(there), n))]


def checkpoint_steps(run: Path) -> list[int]:
    """Returns the steps after which a run wrote a checkpoint that is there."""
    names = [path.parent.name.removeprefix("step_") for path in run.glob("checkpoints/step_*/manifest.json")]
    return sorted(int(digits) for digits in names if digits.isdigit())


def where_it_is(run: Path) -> str:
    """Returns the step of a run's newest checkpoint."""
    steps = checkpoint_steps(run)
    whole = _mapping(_read(run / "run.json").get("run")).get("steps")
    of = f" of {whole}" if isinstance(whole, int) else ""
    return f"at step {steps[-1]}{of}" if steps else "without a checkpoint yet"


def _command(run: Path) -> list[str]:
    """Returns the words of the shell's command that a run is of; none of a run of Python."""
    found = _read(run / "run.json").get("command")
    return [str(word) for word in found] if isinstance(found, list) else []


def _going_on(command: list[str], folder: Path) -> str:
    if not command:
        return IN_PYTHON
    return f"Go on with: {shown_command([*command, '--save-dir', place(folder), '--resume'])}"


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
