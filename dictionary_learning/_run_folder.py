"""The folder of a run: claimed by one process at a time, never mixed with another run's files."""

import contextlib
import contextvars
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from dictionary_learning._disk import settled, shown
from dictionary_learning._what_is import unfinished
from dictionary_learning.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK = ".run.lock"
"""The file that names the process which writes into a folder."""
LATEST = "latest"
"""The name of the link to the newest run."""
COMMAND: contextvars.ContextVar[tuple[str, ...] | None] = contextvars.ContextVar("command", default=None)
"""The words of the shell's command that runs, without its folder, `--resume` and `--overwrite`."""
OPTIONS: contextvars.ContextVar[str | None] = contextvars.ContextVar("options", default=None)
"""What was given to that command, as the text of its run file."""
DRAWN_SEEDS = "DICTIONARY_LEARNING_DRAWN_SEEDS"
"""The environment variable by which `reproduce` tells a run the seeds that the first one drew."""
RUN_FILE = "run.yaml"
"""The file in a run's folder that `train --config` reads again."""
_RUN = re.compile(
    r"trainer_\d+|metrics\.jsonl|checkpoints/(step_\d+|\.step_\d+\..*\.unfinished|share_\d+|dictionary_\d+(_latents_\d+)?)"
)
_WRITTEN = re.compile(_RUN.pattern + r"|run\.(json|yaml)|report\.(json|md|html)|tensorboard/events\.out\.tfevents\..*")
"""What a run writes into its folder, and all that `overwrite` removes: files of the user's stay."""
_SHARED = ("checkpoints", "tensorboard")
"""Folders in which a run writes, and the user may keep files too."""


@contextlib.contextmanager
def claim_run_folder(path: str | os.PathLike[str], keep: bool = False) -> Generator[Path, None, None]:
    """Reserves a folder for a run of this process, until the context ends.

    A claim within another claim of the same process does nothing. The lock of a process that was
    killed is taken over.

    Raises:
        ConfigError: the folder holds a run, unless `keep` lets it be; or another process writes
            into it, or it cannot be written.
    """
    folder = settled(path)
    lock = folder / LOCK
    if _read_lock(lock) == _this_process():  # the outer claim removes the lock
        yield folder
        return
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _lock(lock)
    except OSError as error:
        raise ConfigError(f"'{shown(folder)}' cannot be a run's folder ({error}). Give another as save_dir.") from error
    try:
        found = [] if keep else _files_of_a_run(folder, _RUN)
        if found:
            instead = "Give another folder, or remove that run with overwrite=True (--overwrite on the command line)."
            held = f"'{shown(folder)}' holds another run ({found[0].name} and others). {instead}"
            anew = f"To begin anew: {instead[0].lower()}{instead[1:]}"
            raise ConfigError(unfinished(Path(shown(folder)), anew) or held)
        yield folder
    finally:
        # the folder may be gone, or another's by now: what was trained must not be lost with it
        with contextlib.suppress(OSError):
            if _read_lock(lock) == _this_process():
                lock.unlink()
            if is_new:
                folder.rmdir()  # fails unless the run ended before it wrote anything


def new_folder(root: str | os.PathLike[str], *words: str) -> Path:
    """Returns the path of a folder that does not exist: `root/<date>-<time>-<words>`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = "-".join([stamp, *(re.sub(r"[^\w.]+", "-", word).strip("-.") for word in words)])
    numbered = (Path(root) / (name if n == 1 else f"{name}-{n}") for n in range(1, 10_000))
    return next(path for path in numbered if not path.exists())


def point_latest_at(folder: Path) -> None:
    """Makes `latest` a link to the run beside it, or a text file with its name if links fail."""
    latest, temporary = folder.parent / LATEST, folder.parent / f".{LATEST}.{os.getpid()}"
    if folder.name == LATEST:
        return
    if latest.is_dir() and not latest.is_symlink():
        logger.warning("'%s' is a folder of its own, so it does not become a link to '%s'.", latest, folder)
        return
    try:
        os.symlink(folder.name, temporary, target_is_directory=True)
    except OSError:  # as on Windows without the privilege
        temporary.write_text(folder.name, encoding="utf-8")
    os.replace(temporary, latest)  # at any moment `latest` names a run


def resolve_latest(place: str) -> str:
    """Returns a path, or the folder that it names if it is the text file of `point_latest_at`."""
    path = Path(place)
    if path.name != LATEST or not path.is_file():
        return place
    return str(path.parent / path.read_text(encoding="utf-8").strip())


def remove_run(folder: Path, sources: Iterable[str] = ()) -> None:
    """Removes the run in a folder: dictionaries, metrics, checkpoints and reports, no other files.

    Args:
        folder: the folder.
        sources: what the next run starts from.

    Raises:
        ConfigError: a source is, or is in, or holds what would be removed.
    """
    found = files_of_run(folder)
    removed = [path.resolve() for path in found]
    for source in sources:
        place = Path(source).resolve()
        if any(path in (place, *place.parents) or place in path.parents for path in removed):
            raise ConfigError(
                f"The run starts from '{source}', which overwriting '{folder}' would remove. Give another folder."
            )
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for name in _SHARED if found else ():
        with contextlib.suppress(OSError):  # it is not there, or holds files of the user's
            (folder / name).rmdir()


def files_of_run(folder: Path) -> list[Path]:
    """Returns the files and folders of the run in a folder."""
    return _files_of_a_run(folder, _WRITTEN)


def _files_of_a_run(folder: Path, names: re.Pattern[str]) -> list[Path]:
    found = [path for place in (".", *_SHARED) for path in (folder / place).glob("*")]
    return sorted(path for path in found if names.fullmatch(path.relative_to(folder).as_posix()))


def _lock(lock: Path) -> None:
    """Creates the lock, or raises ConfigError: another process that runs holds it."""
    for _ in range(100):
        with contextlib.suppress(FileExistsError):
            # O_EXCL: of several processes, one creates the file
            handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(_this_process(), file)
            return
        holder = _read_lock(lock)
        if holder is None:
            time.sleep(0.01)  # it was removed, or is being written
        elif _is_running(holder):
            raise ConfigError(
                f"Process {holder['pid']} on {holder['host']} writes into '{lock.parent}'. Wait until it ends, or give "
                f"another folder. If no such process runs, remove '{lock}'."
            )
        else:
            # of several processes that find a stale lock, one renames it; the others find nothing
            # to rename
            stale = lock.with_name(f"{LOCK}.{os.getpid()}")
            with contextlib.suppress(FileNotFoundError):
                os.rename(lock, stale)
                if _read_lock(stale) != holder:  # another process was faster, and this is its new lock
                    os.rename(stale, lock)
                    continue
                stale.unlink()
                removed = "Process %s, which wrote into '%s', has ended; its lock is removed."
                logger.info(removed, holder["pid"], lock.parent)
    raise ConfigError(f"'{lock}' cannot be read. If no process writes into '{lock.parent}', remove it.")


def _read_lock(lock: Path) -> dict[str, Any] | None:
    """Returns which process holds a lock; None if there is none, or it is not complete."""
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        return {"pid": int(holder["pid"]), "started": str(holder["started"]), "host": str(holder["host"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _this_process() -> dict[str, Any]:
    return {"pid": os.getpid(), "started": _started(os.getpid()) or "", "host": socket.gethostname()}


def _is_running(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return True  # cannot be seen from here
    started = _started(holder["pid"])
    # a process of the same number that started at another time is another process
    return started is not None and holder["started"] in ("", started)


def _started(pid: int) -> str | None:
    """Returns when a process started; "" if the system does not tell, None if it does not run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]  # field 22, in ticks since boot; a name may hold spaces
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    if os.name == "nt":
        return ""  # os.kill(pid, 0) would end the process there
    shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip() or None
