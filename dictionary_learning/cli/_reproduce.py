"""`dictionary-learning reproduce`: a run again, and what differs."""

import dataclasses
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from dictionary_learning._run_folder import DRAWN_SEEDS, RUN_FILE, new_folder, resolve_latest
from dictionary_learning._what_is import where_it_is
from dictionary_learning.cli._arguments import CommandArguments
from dictionary_learning.cli._output import write_line
from dictionary_learning.cli._parser import CONFIG
from dictionary_learning.cli._run_file import file_named_in
from dictionary_learning.errors import ConfigError

logger = logging.getLogger(__name__)

_MAY_DIFFER = ("volatile", "dictionaries")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceArguments(CommandArguments):
    """Repeats a run of `dictionary-learning train`, and compares its dictionaries with it.

    Exits with 0 where all have the same bytes. Otherwise it exits with 1, and prints how far each
    tensor differs, relative to its largest value, and what differs in settings, versions and
    hardware.
    """

    positional: ClassVar = ("run_dir",)
    run_dir: str
    """The folder of the run."""
    save_dir: str | None = None
    """The folder for the repetition; by default a new one beside the run, which is removed where
    all bytes are the same."""

    def run(self) -> int:
        from dictionary_learning._plain import differences
        from dictionary_learning._provenance import read_run

        folder = Path(resolve_latest(self.run_dir)).resolve()
        first = read_run(folder)
        command = _command_of(first, folder)
        again = Path(self.save_dir or new_folder(folder.parent, folder.name, "again")).resolve()
        logger.info("Repeats '%s' in '%s'.", folder, again)
        status = _run_again(command, again, first)
        if status:
            logger.error("The repetition ended with exit status %d.", status)
            return status
        second = read_run(again)
        differing = [name for name in first["dictionaries"] if not _show_dictionary(name, folder, again, first, second)]
        ours, theirs = ({key: run[key] for key in run if key not in _MAY_DIFFER} for run in (first, second))
        for place, before, now in differences(ours, theirs) if differing else ():
            write_line(f"{place}: {before!r}, now {now!r}")
        if not differing and self.save_dir is None:
            shutil.rmtree(again)
        return int(bool(differing))


def _command_of(run: Mapping[str, Any], folder: Path) -> list[str]:
    """Returns the words of the command that repeats a run.

    Raises:
        ConfigError: There is none, or the run has no dictionaries to compare with.
    """
    from dictionary_learning._secrets import HIDDEN

    volatile = run["volatile"]
    if run["command"] is None:
        raise ConfigError(
            f"'{folder}' was trained from Python (by {volatile['program'][0]!r}), on objects that only that program "
            "can make again. Run it with another save_dir, and compare `dictionaries` of both run.json files."
        )
    if run["command"][:1] == ["sweep"]:
        raise ConfigError(
            f"'{folder}' is a group of a sweep. Run the sweep again with another --save-dir, and compare the "
            "`dictionaries` of both run.json files."
        )
    last = volatile["sessions"][-1]
    if last.get("outcome") != "finished":
        where = f"step {last['last_step']}" if "last_step" in last else where_it_is(folder)  # a killed run says none
        raise ConfigError(
            f"'{folder}' is not finished ({where}), so there is nothing to compare with. Finish it with --resume first."
        )
    if any(HIDDEN in word for word in run["command"]):
        raise ConfigError(
            f"The command of '{folder}' had a password or token, which run.json does not keep. Write the command "
            "again with another --save-dir, and compare `dictionaries` of both run.json files."
        )
    words: list[str] = run["command"]
    path, others = file_named_in(words)
    if path is None:
        return words
    # the file may have changed, and the run keeps what was given
    return [*others[: others.index("train") + 1], CONFIG, str(folder / RUN_FILE)]


def _run_again(command: list[str], folder: Path, run: Mapping[str, Any]) -> int:
    """Runs a command in a process with as many threads as the run had; returns its exit status."""
    package = Path(__file__).parents[2]
    paths = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = str(run["environment"]["hardware"]["threads"])
    words = [sys.executable, "-m", "dictionary_learning", *command, "--save-dir", str(folder)]
    place = run["volatile"]["directory"]
    if not Path(place).is_dir():
        raise ConfigError(f"The run was started in '{place}', which is not here. Make that folder, with its data.")
    seeds = ",".join(str(settings.get("seed") or "") for settings in run["run"]["trainers"])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": threads, DRAWN_SEEDS: seeds}
    # what the command prints is the address of its report
    return subprocess.run(words, cwd=place, env=environment, stdout=subprocess.DEVNULL, check=False).returncode


def _show_dictionary(name: str, folder: Path, again: Path, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Prints how a dictionary and its repetition differ; returns whether their bytes do not."""
    from dictionary_learning._disk import sha256_of
    from dictionary_learning.interop._files import weights_in

    ours, theirs = weights_in(folder / name), weights_in(again / name)
    is_same = first["dictionaries"][name] == second["dictionaries"].get(name)
    if is_same:
        write_line(f"{name}: the same bytes")
    elif ours is None or sha256_of(ours) != first["dictionaries"][name]:
        write_line(f"{name}: differs, and '{ours or folder / name}' is not what the run wrote")
    elif theirs is None:
        write_line(f"{name}: not in the repetition")
    else:
        shown = ", ".join(f"{tensor} {value}" for tensor, value in _tensor_differences(ours, theirs).items())
        write_line(f"{name}: differs: {shown}")
    return is_same


def _tensor_differences(first: Path, second: Path) -> dict[str, str]:
    """Returns max |a - b| / max |a| of each tensor, or why there is none."""
    from dictionary_learning.interop._archives import read_pt
    from dictionary_learning.interop._safe import read_safetensors

    found: dict[str, str] = {}
    ours, theirs = (read_pt(path) if path.suffix == ".pt" else read_safetensors(path) for path in (first, second))
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            found[name] = "has another shape"
            continue
        a, b = ours[name].double(), theirs[name].double()
        largest = a.abs().max().item() if a.numel() else 0.0
        gap = (a - b).abs().max().item() if a.numel() else 0.0
        found[name] = f"{gap / largest if largest else gap:.2g}"
    return found
