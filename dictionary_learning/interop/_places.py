"""Where in a folder dictionaries are: the one way in which every command finds them."""

import itertools
import re

from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._base import FORMATS
from dictionary_learning.interop._files import COPIES, ENDINGS, WHOLE, Files
from dictionary_learning.sites import natural_key

_MOST_FOLDERS, _DEEPEST = 5_000, 6
"""Folders below a run that are looked into."""


def sites_in(files: Files) -> dict[str, str]:
    """Returns each dictionary's path below a run ("" for itself), by site, in natural order.

    The site is that path without the ending of a file, and without a folder within one of the same
    name: `layers.3` for `layers.3/layers.3`.
    """
    if files.chosen is not None:
        return {"": ""}
    found: dict[str, str] = {}
    waiting, n = [(files, "")], 0
    while waiting:
        place, path = waiting.pop()  # a folder, and its path below the run
        n += 1
        if n > _MOST_FOLDERS:
            raise CheckpointError(f"'{files}' has more than {_MOST_FOLDERS} folders. Give the folder of one run.")
        names = [""] if is_whole(place) else place.weights(*ENDINGS)
        names = [""] if len(names) == 1 else names  # the only file is the folder's dictionary
        for name in names:
            stem = re.sub(r"(\.sae)?\.(pt|pth|safetensors)$", "", name)
            parts = itertools.groupby(part for part in f"{path}/{stem}".split("/") if part)
            found["/".join(part for part, _ in parts)] = f"{path}/{name}".strip("/")
        if "" not in names and path.count("/") < _DEEPEST:
            below = [name for name, is_dir in place.entries.items() if is_dir and name not in COPIES]
            waiting += [(place.at(name), f"{path}/{name}".strip("/")) for name in below]
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def is_whole(files: Files) -> bool:
    """Returns whether a folder is one dictionary, in one file or in several."""
    spanning = (entry for _, entry in FORMATS.items() if entry.file_names is not None)
    return any(files.has(name) for name in WHOLE) or any(entry.recognizes(files) for entry in spanning)
