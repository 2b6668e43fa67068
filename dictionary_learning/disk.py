"""Files that are complete or not there, whatever happens while they are written."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_UNFINISHED = ".unfinished"
"""What a file's name ends in while it is written."""


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary file beside the path, brings it to the disk, and moves it there in one step."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_UNFINISHED, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        _to_disk(temporary, os.O_RDWR)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        _to_disk(path.parent, os.O_RDONLY)  # or the new name could be lost with the power
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a JSON file, complete or not at all."""
    text = json.dumps(document, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def remove_unfinished(folder: Path) -> None:
    """Removes the files that a writer who was killed did not finish."""
    for path in folder.glob(f".*{_UNFINISHED}") if folder.is_dir() else ():
        path.unlink(missing_ok=True)


def _to_disk(path: Path, flags: int) -> None:
    if os.name == "nt" and path.is_dir():
        return  # folders cannot be opened there
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
