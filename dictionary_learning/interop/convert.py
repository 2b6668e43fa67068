"""Dictionaries from one format into another."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import CheckpointError, UnknownNameError
from dictionary_learning.interop.base import FORMATS, Format
from dictionary_learning.interop.loading import located, read
from dictionary_learning.interop.places import sites_in


def write_dictionary(
    dictionary: Dictionary,
    path: str | os.PathLike,
    to: str = "own",
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a dictionary in a format.

    Args:
        dictionary: what to write; it is not changed.
        path: the folder, which is made if need be.
        to: the format: own, dictionary_learning, sparsify or sae_lens.
        config: what is known of it, as `load_dictionary` gives it: model and site go where the format has a place for them.

    Returns:
        The folder.

    Raises:
        CheckpointError: the format cannot express the dictionary; the message says why.
    """
    known = _writable(to)
    folder = Path(path)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        known.write(dictionary, folder, config or {})
    except CheckpointError:
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise
    return folder


def convert(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    to: str = "own",
    *,
    site: str | None = None,
    format: str | None = None,
    revision: str | None = None,
    **facts: Any,
) -> list[Path]:
    """Converts a dictionary, or all of a run, each into a folder by the name of its site.

    Args:
        source: where it is: a folder, a file, or a repository of the hub.
        destination: the folder to write.
        to: the format to write.
        site: one of several.
        format: the format to read, where the files alone do not tell.
        revision: branch, tag or commit of the repository.
        facts: what the files do not say and the format needs.

    Returns:
        The folders written.

    Raises:
        CheckpointError: the source cannot be read, or the format cannot express what it holds.
    """
    _writable(to)
    files = located(source, site=site, revision=revision, many=site is None)
    places = sites_in(files)
    if site is not None:
        places = {"": places.get(site, site)}
    elif not places:
        places = {"": ""}  # reading says what is wrong with it
    written = []
    for name, place in places.items():
        loaded = read(files.at(place) if place else files, format, facts, None)
        target = Path(destination) / name if len(places) > 1 else Path(destination)
        written.append(write_dictionary(loaded.dictionary, target, to, loaded.config))
    return written


def _writable(name: str) -> Format:
    try:
        known = FORMATS[name]
    except UnknownNameError as error:
        raise CheckpointError(str(error)) from error
    if not known.writes:
        writable = ", ".join(other for other, entry in FORMATS.items() if entry.writes)
        raise CheckpointError(f"Dictionaries are read as {name}, and not written. Choose one of: {writable}.")
    return known
