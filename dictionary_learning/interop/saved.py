"""All dictionaries at a place, ours and those of other packages, with what is known of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries.serialization import WEIGHTS
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop.loading import load_dictionary, located
from dictionary_learning.interop.places import sites_in
from dictionary_learning.sites import natural_key


class Saved(NamedTuple):
    """A dictionary, and what is known of it."""

    name: str
    dictionary: Dictionary
    config: Mapping[str, Any]
    folder: Path | None = None
    """The folder that this package wrote it into; None for other formats."""


def own_folders(place: str) -> list[Path]:
    """Returns the folders at a path that this package wrote a dictionary into: itself, or those of a whole run."""
    folder = Path(place)
    if (folder / WEIGHTS).is_file():
        return [folder]
    return sorted((p.parent for p in folder.glob(f"*/{WEIGHTS}")), key=lambda p: natural_key(p.name))


def saved_at(place: str, is_wanted: Callable[[str], bool] | None = None) -> list[Saved]:
    """Returns the dictionaries at a path or in a repository of the hub, of any format.

    Args:
        place: the path, or the repository.
        is_wanted: of other packages' folders, whose names say what they are, those to read, if it is true of any.

    Raises:
        CheckpointError: there is none, or one cannot be read.
    """
    found = []
    for folder in own_folders(place):
        dictionary, config = load_dictionary(folder)
        found.append(Saved(config.get("name", folder.name), dictionary, config, folder))
    if found:
        return found
    sites = list(sites_in(located(place, many=True)))
    if not sites:
        raise CheckpointError(
            f"There is no dictionary in '{place}'. Give the folder of a dictionary, or of a run with trainer_0 in it."
        )
    wanted = [site for site in sites if is_wanted is not None and is_wanted(site)]
    return [Saved(site or Path(place).name, *load_dictionary(place, site=site or None)) for site in wanted or sites]
