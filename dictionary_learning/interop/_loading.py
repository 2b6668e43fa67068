"""Dictionaries from folders, files and the hub, of any format."""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from dictionary_learning.dictionaries import Dictionary, DictionaryInfo
from dictionary_learning.dictionaries._serialization import WEIGHTS
from dictionary_learning.errors import CheckpointError, DictionaryLearningError
from dictionary_learning.interop._base import Facts, format_of
from dictionary_learning.interop._files import Files, check_relative, shorten, sites_in
from dictionary_learning.interop._safe import READ_ERRORS

logger = logging.getLogger(__name__)


def load_dictionary(
    path: str | os.PathLike,
    device: torch.device | str | None = None,
    *,
    site: str | None = None,
    format: str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    expected_class: str | None = None,
    **facts: Any,
) -> Dictionary:
    """Loads a dictionary; see `dictionary_learning.load_dictionary`.

    `expected_class` is the name of the class that the caller expects. It decides where files fit
    several classes.
    """
    files = find_files(path, site=site, revision=revision)
    files = files if site is None else _below(files, site)
    source = str(files) if os.path.exists(path) else "/".join(part for part in (str(path), site) if part)
    return read(files, format, facts, dtype, source, expected_class).to(device or "cpu")


def load_many(
    path: str | os.PathLike,
    device: torch.device | str | None = None,
    *,
    format: str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    wanted: Callable[[str], bool] | None = None,
    **facts: Any,
) -> dict[str, Dictionary]:
    """Loads all dictionaries of a run, of any format.

    Args:
        path: the folder of the run, or a repository of the hub.
        device: the CPU by default.
        format: their format, where the files alone do not tell.
        dtype: the dtype of the weights, instead of the stored one.
        revision: branch, tag or commit of the repository.
        wanted: of the dictionaries of other packages, whose folders are named after their sites,
            only those whose site this function accepts are loaded, unless it accepts none.
        facts: facts that the format needs and the files do not hold.

    Returns:
        The dictionaries by site, which is the folder below that holds each ("layers.10",
        "layers.0/seed1", "trainer_2"), in natural order. Copies of earlier steps (`checkpoints/`)
        and of the best step (`best/`) are left out; give their own folder to load them.

    Raises:
        CheckpointError: there is no dictionary, or one of them cannot be read.
    """
    files = find_files(path, revision=revision, many=True)
    sites = sites_in(files)
    if not sites:
        raise CheckpointError(
            f"There is no dictionary in '{files}'. It holds: {files.listing()}. Give the folder of a run."
        )
    if wanted is not None:
        asked = {site: place for site, place in sites.items() if wanted(site) or files.at(place).has(WEIGHTS)}
        sites = asked or sites  # names that say nothing exclude nothing
    return {
        site: read(files.at(place), format, facts, dtype, f"{path}/{place}".rstrip("/")).to(device or "cpu")
        for site, place in sites.items()
    }


def find_files(
    path: str | os.PathLike, *, site: str | None = None, revision: str | None = None, many: bool = False
) -> Files:
    """Returns the files at a path, or those of a repository of the hub, fetched as needed."""
    if os.path.exists(path):
        if revision is not None:
            logger.warning("'%s' is a local folder, which has no revision; %s is ignored.", path, revision)
        return Files(path)
    owner, _, rest = str(path).partition("/")
    is_windows = "\\" in str(path) or ":" in owner
    if isinstance(path, str) and owner and rest and not owner.startswith((".", "~")) and not is_windows:
        from dictionary_learning.interop._hub import fetch  # which loads dictionaries itself

        return fetch(path, site=site, revision=revision, many=many)
    return Files(path)


def read(
    files: Files,
    format: str | None,
    facts: Facts,
    dtype: torch.dtype | None = None,
    source: str | None = None,
    expected_class: str | None = None,
) -> Dictionary:
    """Returns the dictionary that files hold, with its `info`."""
    if format is None:
        sites = sites_in(files)
        if len(sites) > 1 and "" not in sites:
            raise CheckpointError(
                f"'{files}' holds {len(sites)} dictionaries: {shorten(list(sites))}. Say which by site=, or use load_many."
            )
        place = "" if "" in sites else next(iter(sites.values()), "")
        files, source = files.at(place), "/".join(part for part in (source, place) if part)
    known = format_of(files, format)
    for name in facts:
        if name not in known.facts:
            usable = f"it uses: {', '.join(known.facts)}" if known.facts else "it uses no facts"
            raise CheckpointError(f"The format {known.name} has no use for {name}={facts[name]!r}; {usable}.")
    if expected_class is not None and "dict_class" in known.facts:
        facts = {"expected_class": expected_class, **facts}
    try:
        dictionary, config = known.read(files, facts)
    except CheckpointError:
        raise
    except (DictionaryLearningError, *READ_ERRORS) as error:
        raise CheckpointError(
            f"'{files}' cannot be read as {known.name} ({error}); it is damaged, or of another format. Give format=."
        ) from error
    # readers check what they take; scales that are folded in may overflow afterwards
    for name, tensor in dictionary.state_dict().items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"'{files}' gives values that are not finite in {name}; it is damaged, or the run that wrote it had diverged."
            )
    if dtype is None and known.name != "own" and dictionary.dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32  # in which other packages compute, whatever they store
    dictionary = dictionary if dtype is None else dictionary.to(dtype)
    dictionary.info = DictionaryInfo.from_config(config, source, known.name)
    return dictionary


def _below(files: Files, site: str) -> Files:
    """Returns the files of one site: a folder or file below, by its name or without its ending."""
    site = check_relative(site, f"'{files}'")
    sites = sites_in(files)
    if site in sites:
        return files.at(sites[site])
    if (files.folder / site).exists():
        return files.at(site)
    known = ", ".join(sites) or "none"
    raise CheckpointError(f"'{files}' has no site '{site}'. There are: {known}. Give one of them.")
