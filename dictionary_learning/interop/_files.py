"""The files of a checkpoint, and the border around them.

A `Files` is one folder, or one file in it that was asked for. Names lead to nothing outside of it,
neither through `..` nor through a symbolic link. The one exception is the hub's cache, where each
file links to the `blobs` of its own repository.
"""

import itertools
import os
import re
from pathlib import Path
from typing import Any

from dictionary_learning.errors import CheckpointError, did_you_mean
from dictionary_learning.interop._safe import open_safetensors, plain_name, read_json, read_yaml
from dictionary_learning.sites import natural_key

WHOLE = (
    "dictionary.safetensors",
    "ae.pt",
    "sae.safetensors",
    "sae_weights.safetensors",
    "params.npz",
    "params.safetensors",
    "hyperparams.json",
    "latest_ckpt.safetensors",
)
"""Files that make a folder one dictionary."""
ENDINGS = (".pt", ".pth", ".safetensors")
"""Endings of weights, in formats that put several dictionaries into one folder."""
COPIES = ("checkpoints", "best")
"""Folders of a run that hold earlier or other steps of its dictionaries."""
TRAINING = re.compile(
    r"((trainer_|rank_\d+_)?state|optimizer.*|lr_scheduler.*|sparsity|activation_whitening|activations_store_state)"
    r"\.(pt|safetensors)"
)
"""Files of a run that hold no dictionary."""
_DECODERS = ("W_dec", "w_dec", "decoder", "D")
_MOST_NAMES = 20_000
"""Entries of a folder that are looked at."""


def weights_in(folder: Path) -> Path | None:
    """Returns the weights of the one dictionary in a folder, of any format that a run writes."""
    return next((folder / name for name in WHOLE if (folder / name).is_file()), None)


class Files:
    """One folder of a checkpoint.

    Args:
        path: the folder, or a file in it that holds the weights.
        root: the folder that nothing may lead out of; the folder itself by default.
    """

    def __init__(self, path: str | os.PathLike, root: Path | None = None):
        given = Path(path)
        # links on the way to the folder are the caller's own
        self.root = root or (given if given.is_dir() else given.parent).resolve()
        _check_inside(given, self.root)
        if not given.exists():
            siblings = sorted(p.name for p in given.parent.iterdir()) if given.parent.is_dir() else []
            raise CheckpointError(
                f"There is no folder '{given}' and no file of that name.{did_you_mean(given.name, siblings)} "
                "Give the folder of a saved dictionary."
            )
        self.folder = given if given.is_dir() else given.parent
        self.chosen: str | None = None if given.is_dir() else given.name
        """The file that was asked for by name."""

    @property
    def entries(self) -> dict[str, bool]:
        """Whether each name in the folder is a folder's, in natural order.

        Hidden names and links that lead nowhere are left out.
        """
        with os.scandir(self.folder) as entries:
            found = list(itertools.islice(entries, _MOST_NAMES + 1))
        if len(found) > _MOST_NAMES:
            raise CheckpointError(
                f"'{self.folder}' holds more than {_MOST_NAMES} files. Give the folder of a dictionary."
            )
        # files that are being written have hidden names, too
        seen = [entry for entry in found if not entry.name.startswith(".") and os.path.exists(entry)]
        is_dir = {entry.name: os.path.isdir(entry) for entry in seen}
        return {name: is_dir[name] for name in sorted(is_dir, key=natural_key)}

    def has(self, name: str) -> bool:
        """Returns whether a file exists."""
        return (self.folder / name).is_file()

    def path(self, name: str) -> Path:
        """Returns the path of a file."""
        found = self.folder / name
        _check_inside(found, self.root)
        if not found.is_file():
            raise CheckpointError(f"'{self.folder}' has no {name}.{self.listing()} Get the whole folder.")
        return found

    def wants(self, name: str) -> bool:
        """Returns whether a file exists, and no other was asked for."""
        return self.has(name) and self.chosen in (None, name)

    def weights(self, *endings: str) -> list[str]:
        """Returns the files that may be a dictionary: the one asked for, or all with a decoder."""
        names = [name for name, is_dir in self.entries.items() if not is_dir] if self.chosen is None else [self.chosen]
        found = [name for name in names if name.endswith(endings) and not TRAINING.fullmatch(name)]
        return found if self.chosen is not None else [name for name in found if self._has_decoder(name)]

    def only_weights(self, *endings: str) -> Path:
        """Returns the path of the only file of weights."""
        names = self.weights(*endings)
        if len(names) != 1:
            raise CheckpointError(
                f"'{self}' has {', '.join(names) or 'no file of weights'}; one is needed. Name it by site=."
            )
        return self.path(names[0])

    def at(self, name: str) -> "Files":
        """Returns the files of a folder below, or one file of it; the border stays."""
        return Files(self.folder / name, self.root) if name else self

    def settings(self, name: str) -> dict[str, Any]:
        """Returns settings from a file beside the weights or above `checkpoints`; empty if none."""
        above = [Files(self.folder.absolute().parent)] if self.folder.name == "checkpoints" else []
        read = read_yaml if name.endswith(".yaml") else read_json
        return next((read(place.path(name)) for place in (self, *above) if place.has(name)), {})

    def listing(self) -> str:
        """Returns a sentence of what the folder holds; none where one file was asked for."""
        if self.chosen is not None:
            return ""  # what else is in its folder says nothing of it
        return f" It holds: {shorten([n + '/' * is_dir for n, is_dir in self.entries.items()]) or 'nothing'}."

    def _has_decoder(self, name: str) -> bool:
        if not name.endswith(".safetensors"):
            return True
        try:
            with open_safetensors(self.path(name)) as file:
                return any(plain_name(key).split(".")[0] in _DECODERS for key in file.keys())  # noqa: SIM118
        except CheckpointError:
            return True  # the reader says what is wrong with it

    def __str__(self) -> str:
        return str(self.folder if self.chosen is None else self.folder / self.chosen)


def shorten(names: list[str], most: int = 12) -> str:
    """Returns names separated by commas; of many, the first and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_relative(name: str, of: str) -> str:
    """Returns a name that may be appended to the name of a folder or of a repository."""
    parts = name.replace("\\", "/").split("/")
    if not name or name.startswith(("/", "\\", "~")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise CheckpointError(f"'{name}' leads out of {of}. Give the name of a folder or file inside of it.")
    return name.strip("/")


def _check_inside(path: Path, root: Path) -> None:
    try:
        resolved = path.resolve()  # follows links
    except (OSError, RuntimeError) as error:  # which differs between versions of Python
        raise CheckpointError(f"'{path}' is a link that leads to itself ({error}). Give the file itself.") from error
    blobs = [  # of the repository in whose snapshot the root is
        folder.parent.parent / "blobs"
        for folder in (root, *root.parents)
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith(("models--", "datasets--"))
    ]
    if not any(resolved.is_relative_to(folder) for folder in (root, *blobs)):
        raise CheckpointError(
            f"'{path}' leads out of '{root}', to '{resolved}'. Put the file itself there, or give the folder that "
            "holds it."
        )
