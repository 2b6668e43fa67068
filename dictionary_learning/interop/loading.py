"""Dictionaries from folders, files and the hub, of any format."""

import logging
import os
from typing import Any

import torch

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import CheckpointError, DictionaryLearningError
from dictionary_learning.interop.base import Facts, Loaded, check_facts, format_of
from dictionary_learning.interop.files import Files, check_relative
from dictionary_learning.interop.places import sites_in
from dictionary_learning.interop.safe import READ_ERRORS
from dictionary_learning.interop.selftest import check_loaded

logger = logging.getLogger(__name__)


def load_dictionary(
    path: str | os.PathLike,
    device: torch.device | str | None = None,
    *,
    site: str | None = None,
    format: str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    **facts: Any,
) -> tuple[Dictionary, dict[str, Any]]:
    """Loads a dictionary and its config; see `dictionary_learning.load_dictionary`."""
    files = located(path, site=site, revision=revision)
    if site is not None:
        files = _below(files, site)
    loaded = read(files, format, facts, dtype)
    return loaded.dictionary.to(device or "cpu"), loaded.config


def load_many(
    path: str | os.PathLike,
    device: torch.device | str | None = None,
    *,
    format: str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    **facts: Any,
) -> dict[str, Dictionary]:
    """Loads all dictionaries of a run, of any format.

    Args:
        path: the folder of the run, or a repository of the hub.
        device: where to put them; the CPU if not given.
        format: their format, where the files alone do not tell.
        dtype: of the weights, instead of that stored.
        revision: branch, tag or commit of the repository.
        facts: what the files do not say and the format needs.

    Returns:
        The dictionaries by site, which is the folder below that holds each ("layers.10", "layers.0/seed1", "trainer_2"), in natural order.
        Copies of earlier steps (`checkpoints/`) and of the best step (`best/`) are left out; give their own folder to load them.

    Raises:
        CheckpointError: there is none, or one of them cannot be read.
    """
    files = located(path, revision=revision, many=True)
    sites = sites_in(files)
    if not sites:
        raise CheckpointError(
            f"There is no dictionary in '{files}'. It holds: {files.listing()}. Give the folder of a run."
        )
    return {
        name: read(files.at(place) if place else files, format, facts, dtype).dictionary.to(device or "cpu")
        for name, place in sites.items()
    }


def located(
    path: str | os.PathLike, *, site: str | None = None, revision: str | None = None, many: bool = False
) -> Files:
    """Returns the files at a path, or those of a repository of the hub, fetched as far as they are needed.

    Raises:
        CheckpointError: there is no such place.
    """
    if not os.path.exists(path) and isinstance(path, str) and _is_repository(path):
        from dictionary_learning.interop.hub import fetch

        return fetch(path, site=site, revision=revision, many=many)
    if revision is not None and os.path.exists(path):
        logger.warning("'%s' is a local folder, which has no revision: %s is left aside.", path, revision)
    return Files(path)


def read(files: Files, format: str | None, facts: Facts, dtype: torch.dtype | None) -> Loaded:
    """Returns the dictionary that files hold.

    Raises:
        CheckpointError: they hold none, or one of no known format, or a damaged one.
    """
    if format is None:
        files = _the_only_one(files)
    known = format_of(files, format)
    check_facts(known, facts)
    try:
        loaded = known.read(files, facts)
    except CheckpointError:
        raise
    except (DictionaryLearningError, RuntimeError, MemoryError, *READ_ERRORS) as error:
        raise CheckpointError(
            f"'{files}' is read as {known.name}, and cannot be ({error}); it is damaged, or of another format. Give format=."
        ) from error
    check_loaded(loaded.dictionary, files)
    return Loaded(_in_dtype(loaded.dictionary, dtype, known.name), loaded.config)


def _in_dtype(dictionary: Dictionary, dtype: torch.dtype | None, format: str) -> Dictionary:
    if dtype is None:
        half = dictionary.dtype in (torch.float16, torch.bfloat16)
        return dictionary.float() if half and format != "own" else dictionary
    return dictionary.to(dtype)


def _is_repository(path: str) -> bool:
    owner, _, rest = path.partition("/")
    return bool(rest) and not owner.startswith((".", "~")) and owner != "" and "\\" not in path


def _below(files: Files, site: str) -> Files:
    """Returns the files of one site: a folder or file below, by its name or without its ending."""
    site = check_relative(site, f"'{files}'")
    sites = sites_in(files)
    if site in sites:
        return files.at(sites[site]) if sites[site] else files
    if (files.folder / site).exists():
        return files.at(site)
    known = ", ".join(sites) or "none"
    raise CheckpointError(f"'{files}' has no site '{site}'. There are: {known}. Give one of them.")


def _the_only_one(files: Files) -> Files:
    """Returns the folder itself where it is a dictionary, or the only one below; itself, too, where there is none."""
    sites = sites_in(files)
    if "" in sites:
        return files
    if len(sites) == 1:
        (place,) = sites.values()
        return files.at(place)
    if sites:
        shown = ", ".join(list(sites)[:12]) + (" …" if len(sites) > 12 else "")
        raise CheckpointError(
            f"'{files}' holds {len(sites)} dictionaries: {shown}. Say which by site=, or use load_many."
        )
    return files
