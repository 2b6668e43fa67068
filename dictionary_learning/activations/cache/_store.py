"""The folder of a cache: local, or at any address that fsspec knows."""

import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dictionary_learning._border import said
from dictionary_learning._disk import remove_unfinished, settled, write_atomically
from dictionary_learning.data._retrying import retried
from dictionary_learning.errors import DataError, MissingDependencyError

_CHUNK = 1 << 22  # bytes that are read at a time for a checksum


class Store:
    """A folder whose files are complete or not there, even if a writer is killed.

    The path is local, or an address such as `s3://bucket/folder`, `hf://datasets/user/name` or
    `memory://folder`.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = str(path)
        self._root: str
        self._files: Any
        self.is_local = "://" not in self.path or self.path.startswith("file://")
        """Whether files can be mapped into memory."""
        if self.is_local:
            self._root = str(settled(Path(self.path.removeprefix("file://")).expanduser()))
            self._files = LocalFileSystem()
            return
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.path)
        except ImportError as error:
            named = re.search(r"[Ii]nstall (\w+)", str(error))  # "Install s3fs to access S3"
            raise MissingDependencyError(named[1] if named else "fsspec", f"Opening {self.path}") from error
        except ValueError as error:
            raise DataError(
                f"'{self.path}' cannot be opened: {said(error)} Give a local folder, or an address that fsspec knows."
            ) from error

    def within(self, name: str) -> "Store":
        """Returns a folder inside."""
        inside = Store(f"{self.path.rstrip('/')}/{name}")
        inside._root = f"{self._root.rstrip('/')}/{name}"  # the working directory may be another by now
        return inside

    @property
    def folder(self) -> Path | None:
        """The folder, if it is local."""
        return Path(self._root) if self.is_local else None

    def file(self, name: str) -> str:
        """Returns the address of a file; refuses a name that leads out of the folder."""
        parts = name.split("/")
        if not name or name.startswith("/") or ".." in parts or "\\" in name or ":" in name:
            raise DataError(
                f"'{name}' is no name of a file within {self.path}; its index was not written by this package."
            )
        return f"{self._root.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Returns whether a file is there."""
        return bool(self._files.isfile(self.file(name)))

    def size(self, name: str) -> int:
        """Returns the size of a file in bytes."""
        return int(self._files.size(self.file(name)))

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        return bytes(retried(lambda: self._files.cat_file(self.file(name)), f"'{self.file(name)}'"))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yields the content of a file in pieces."""
        with self._files.open(self.file(name), "rb") as file:
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
            address = self.file(name)
            self._files.makedirs(address.rpartition("/")[0], exist_ok=True)
            self._files.pipe_file(address, content)

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
