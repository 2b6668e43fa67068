"""Files that are complete or absent, whatever happens while they are written."""

import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dictionary_learning.errors import ConfigError

UNFINISHED = ".unfinished"
"""The ending of a file's name while the file is written."""
_CHUNK = 1 << 22


def settled(path: str | os.PathLike[str]) -> Path:
    """Returns an absolute path: what is written later must not follow the working directory.

    Raises:
        ConfigError: The working directory was removed.
    """
    try:
        return Path(path).absolute()
    except FileNotFoundError:
        raise ConfigError(
            f"Got the path '{path}', and the working directory was removed. Give an absolute one."
        ) from None


def shown(path: Path) -> str:
    """Returns a path as it is written from the working directory: relative, if it is inside."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):  # it is elsewhere, or the working directory was removed
        return str(path)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary file, flushes it to the disk, and renames it in one step."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{UNFINISHED}")
    # the kernel applies the umask here; asking for it would change it for all threads
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        os.close(handle)
        write(temporary)
        flush_to_disk(temporary)
        os.chmod(temporary, mode)  # `write` may have replaced the file
        os.replace(temporary, path)
        flush_to_disk(path.parent)  # otherwise the new name could be lost in a power failure
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON file, complete or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(document, indent=2) + "\n"))


def remove_unfinished(folder: Path) -> None:
    """Removes the files of a writer that was killed."""
    for path in folder.glob(f".*{UNFINISHED}") if folder.is_dir() else ():
        path.unlink(missing_ok=True)


def free_disk(path: Path) -> int:
    """Returns the bytes left on the disk that holds a path, which need not exist yet."""
    return shutil.disk_usage(next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())).free


def size_on_disk(paths: Iterable[Path]) -> int:
    """Returns the bytes of files, and of all files in folders."""
    inside = (file for path in paths for file in ([path] if path.is_file() else path.rglob("*")))
    return sum(file.stat().st_size for file in inside if file.is_file())


def sha256_of(path: Path) -> str:
    """Returns the checksum of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def size_and_checksum(path: Path) -> dict[str, Any]:
    """Returns by which a file is known again, as JSON values."""
    return {"size": path.stat().st_size, "sha256": sha256_of(path)}


def flush_to_disk(path: Path) -> None:
    """Waits until a file's contents, or a folder's names, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
