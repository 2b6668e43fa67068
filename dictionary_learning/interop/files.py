"""The files of a checkpoint, and the border around them.

A `Files` is one folder, or one file in it that was asked for. Names lead to nothing outside: neither through `..`, nor through a
symbolic link. The one exception is the cache of the hub, where each file is a link into the `blobs` of its own repository.
"""

import os
from pathlib import Path

from dictionary_learning.errors import CheckpointError, did_you_mean
from dictionary_learning.sites import natural_key

_MOST_NAMES = 20_000
"""Entries of a folder that are looked at; a folder with more is no checkpoint."""


class Files:
    """One folder of a checkpoint.

    Args:
        path: the folder, or a file in it that holds the weights.
        root: the folder that nothing may lead out of; by default the folder itself.

    Raises:
        CheckpointError: it is not there, or leads out of the root.
    """

    def __init__(self, path: str | os.PathLike, root: Path | None = None):
        given = Path(path)
        # a folder is what it is when it is opened: links on the way to it are the caller's
        if root is None:
            root = (given if given.is_dir() else given.parent).resolve()
        self.root = root
        _check_inside(given, root)
        if not given.exists():
            parent = given.parent
            there = sorted(p.name for p in parent.iterdir()) if parent.is_dir() else []
            raise CheckpointError(
                f"There is no folder '{given}' and no file of that name.{did_you_mean(given.name, there)} "
                "Give the folder of a saved dictionary."
            )
        self.folder = given if given.is_dir() else given.parent
        self.chosen: str | None = None if given.is_dir() else given.name
        """The file that was asked for by name."""

    @property
    def names(self) -> list[str]:
        """The files in the folder, in natural order."""
        return [name for name, is_dir in self._entries() if not is_dir]

    @property
    def folders(self) -> list[str]:
        """The folders in the folder, in natural order, but for hidden ones."""
        return [name for name, is_dir in self._entries() if is_dir]

    def has(self, *names: str) -> bool:
        """Returns whether all of these files are there."""
        return all((self.folder / name).is_file() for name in names)

    def path(self, name: str) -> Path:
        """Returns where a file is.

        Raises:
            CheckpointError: it is not there, or the name leads out of the checkpoint.
        """
        found = self.folder / name
        _check_inside(found, self.root)
        if not found.is_file():
            raise CheckpointError(f"'{self.folder}' has no {name}; it holds: {self.listing()}. Get the whole folder.")
        return found

    def weights(self, *endings: str) -> list[str]:
        """Returns the files that may hold weights: the one asked for, or all with these endings."""
        if self.chosen is not None:
            return [self.chosen] if self.chosen.endswith(endings) else []
        return [name for name in self.names if name.endswith(endings)]

    def wants(self, name: str) -> bool:
        """Returns whether a file is there, and no other was asked for."""
        return self.has(name) and self.chosen in (None, name)

    def at(self, name: str) -> "Files":
        """Returns the files of a folder below, or one file of it; the border stays.

        Raises:
            CheckpointError: the name leads out of the checkpoint, or to nothing.
        """
        return Files(self.folder / name, self.root)

    def above(self) -> "Files":
        """Returns the folder above: some formats keep settings there."""
        return Files(self.folder.absolute().parent)

    def listing(self) -> str:
        """Returns what is there, in words."""
        shown = [name + ("/" if is_dir else "") for name, is_dir in self._entries()]
        return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "") or "nothing"

    def _entries(self) -> list[tuple[str, bool]]:
        found = []
        with os.scandir(self.folder) as entries:
            for n, entry in enumerate(entries):
                if n >= _MOST_NAMES:
                    raise CheckpointError(
                        f"'{self.folder}' holds more than {_MOST_NAMES} files. Give the folder of a dictionary."
                    )
                if not entry.name.startswith("."):
                    found.append((entry.name, entry.is_dir()))
        return sorted(found, key=lambda entry: natural_key(entry[0]))

    def __str__(self) -> str:
        return str(self.folder if self.chosen is None else self.folder / self.chosen)


def check_relative(name: str, of: str) -> str:
    """Returns a name that may be joined to a folder's or a repository's.

    Raises:
        CheckpointError: it is absolute, or goes up.
    """
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith(("/", "\\", "~")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise CheckpointError(f"'{name}' leads out of {of}. Give the name of a folder or file inside of it.")
    return name.strip("/")


def _check_inside(path: Path, root: Path) -> None:
    resolved = path.resolve()
    if resolved == root or root in resolved.parents:
        return
    repository = _cached_repository(root)
    if repository is not None and repository in resolved.parents:
        return
    raise CheckpointError(
        f"'{path}' leads out of '{root}', to '{resolved}'. Put the file itself there, or give the folder that holds it."
    )


def _cached_repository(root: Path) -> Path | None:
    """Returns the repository's folder in the hub's cache, where the root is a snapshot or lies in one."""
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(("models--", "datasets--")):
            return folder.parent.parent / "blobs"
    return None
