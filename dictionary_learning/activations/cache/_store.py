"""The folder of a cache: local, or at any address that fsspec knows."""

import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dictionary_learning._disk import remove_unfinished, write_atomically
from dictionary_learning.errors import DataError, MissingDependencyError

_CHUNK = 1 << 22
"""Bytes that are read at a time for a checksum."""


class Store:
    """A folder whose files are complete or not there, even if a writer is killed.

    Args:
        path: a local path, or an address such as `s3://bucket/folder`, `hf://datasets/user/name` or
            `memory://folder`.

    Raises:
        DataError: fsspec does not know such addresses.
        MissingDependencyError: fsspec, or its package for such addresses, is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = str(path)
        self._remote: Any = None
        if "://" not in self.path or self.path.startswith("file://"):
            self._root = str(Path(self.path.removeprefix("file://")).expanduser())
            return
        try:
            import fsspec

            self._remote, self._root = fsspec.core.url_to_fs(self.path)
        except ImportError as error:
            named = re.search(r"[Ii]nstall (\w+)", str(error))  # "Install s3fs to access S3"
            raise MissingDependencyError(named[1] if named else "fsspec", f"Opening {self.path}") from error
        except ValueError as error:
            raise DataError(
                f"'{self.path}' cannot be opened: {error}. Give a local folder, or an address that fsspec knows."
            ) from error

    @property
    def is_local(self) -> bool:
        """Whether files can be mapped into memory."""
        return self._remote is None

    def file(self, name: str) -> str:
        """Returns the address of a file.

        Raises:
            DataError: the name leads out of the folder.
        """
        parts = name.split("/")
        if not name or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
            raise DataError(
                f"'{name}' is no name of a file within {self.path}; its index was not written by this package."
            )
        return f"{self._root.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Returns whether a file is there."""
        address = self.file(name)
        return os.path.isfile(address) if self.is_local else bool(self._remote.isfile(address))

    def size(self, name: str) -> int:
        """Returns the size of a file in bytes."""
        address = self.file(name)
        return os.path.getsize(address) if self.is_local else int(self._remote.size(address))

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        address = self.file(name)
        return Path(address).read_bytes() if self.is_local else bytes(self._remote.cat_file(address))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yields the content of a file in pieces."""
        if not self.is_local:
            yield self.read(name)
            return
        with open(self.file(name), "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    def crc32(self, name: str) -> int:
        """Returns the CRC-32 of a file."""
        found = 0
        for chunk in self.chunks(name):
            found = zlib.crc32(chunk, found)
        return found

    def write(self, name: str, content: bytes) -> None:
        """Writes a file atomically: a local one by renaming, others as a whole."""
        if self.is_local:
            self.fill(name, lambda path: path.write_bytes(content))
        else:
            self._remote.makedirs(os.path.dirname(self.file(name)), exist_ok=True)
            self._remote.pipe_file(self.file(name), content)

    def fill(self, name: str, fill: Callable[[Path], object]) -> None:
        """Lets `fill` write a local file under a temporary name, then renames it."""
        path = Path(self.file(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, fill)

    def remove_unfinished(self) -> None:
        """Removes temporary files of writers that were killed."""
        if self.is_local:
            remove_unfinished(Path(self._root))

    def free(self) -> int | None:
        """Returns the free bytes of the disk, or None if they are not known."""
        if not self.is_local:
            return None
        folder = Path(self._root).absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free
