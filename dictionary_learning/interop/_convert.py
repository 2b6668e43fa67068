"""Writes dictionaries in other formats, and converts saved ones."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.dictionaries._serialization import check_finite
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._base import writable_format
from dictionary_learning.interop._files import WHOLE, sites_in
from dictionary_learning.interop._loading import find_files, read


def write_dictionary(
    dictionary: Dictionary,
    path: str | os.PathLike,
    to: str = "own",
    config: Mapping[str, Any] | None = None,
    *,
    hook_name: str | None = None,
    hook_name_out: str | None = None,
    model_name: str | None = None,
) -> Path:
    """Writes a dictionary in a format.

    Args:
        dictionary: it is not changed.
        path: the folder, which is created if it does not exist; it is returned.
        to: the format: own, dictionary_learning, sparsify or sae_lens.
        config: what is known about the dictionary; sections not given are taken from
            `dictionary.info`.
        hook_name: the site that the dictionary reads, instead of the known one; for sae_lens a hook
            of TransformerLens.
        hook_name_out: the site that the dictionary reconstructs, for transcoders.
        model_name: the name of the language model, instead of the known one.

    Raises:
        CheckpointError: the format cannot express the dictionary, a tensor is not finite, or the
            folder holds a dictionary of another format. Nothing has been written then.
    """
    known = writable_format(to)
    check_finite(dictionary)
    folder = Path(path)
    foreign = [name for name in WHOLE if (folder / name).exists() and name not in known.needed]
    if foreign:
        raise CheckpointError(
            f"'{folder}' holds {', '.join(foreign)} of a dictionary in another format; with both in one folder neither can be read. "
            "Write to another folder."
        )
    said = {"site": hook_name, "target_site": hook_name_out, "model": model_name}
    given = {section: value for section, value in said.items() if value is not None}
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        known.write(dictionary, folder, {**dictionary.info.to_config(), **(config or {}), **given})
    except CheckpointError:
        if is_new and not any(folder.iterdir()):  # what was refused leaves nothing behind
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
    hook_name: str | None = None,
    hook_name_out: str | None = None,
    model_name: str | None = None,
    **facts: Any,
) -> list[Path]:
    """Converts a dictionary, or all dictionaries of a run, each into a folder named after its site.

    Args:
        source: a folder, a file, or a repository of the hub.
        destination: the folder to write.
        to: the format to write.
        site: one of several dictionaries; all by default.
        format: the format to read, where the files alone do not tell.
        revision: branch, tag or commit of the repository.
        hook_name: see `write_dictionary`, as for hook_name_out and model_name.
        facts: facts that the format needs and the files do not hold.

    Returns:
        The folders written.

    Raises:
        CheckpointError: the source cannot be read, or the format cannot express a dictionary.
    """
    writable_format(to)
    files = find_files(source, site=site, revision=revision, many=site is None)
    places = sites_in(files)
    if site is not None:
        places = {"": places.get(site, site)}
    written: list[Path] = []
    # one after another: a run may not fit into memory
    for name, place in (places or {"": ""}).items():
        dictionary = read(files.at(place), format, facts, source=str(source))
        target = Path(destination) / name if len(places) > 1 else Path(destination)
        written.append(
            write_dictionary(
                dictionary, target, to, hook_name=hook_name, hook_name_out=hook_name_out, model_name=model_name
            )
        )
    return written
