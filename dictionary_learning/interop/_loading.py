"""Reads dictionaries of any format from folders, files and the hub, and writes some formats."""

import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dictionary_learning._border import checked
from dictionary_learning._what_is import unfinished, what_is
from dictionary_learning.dictionaries import Dictionary, DictionaryInfo
from dictionary_learning.dictionaries._serialization import WEIGHTS, check_finite, nonfinite_names
from dictionary_learning.errors import CheckpointError, DictionaryLearningError
from dictionary_learning.interop._base import Facts, format_of, writable_format
from dictionary_learning.interop._files import WHOLE, Files, check_relative, shorten
from dictionary_learning.interop._places import sites_in
from dictionary_learning.interop._safe import READ_ERRORS

logger = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[^.~/:\\][^/:\\]*/[^\\]+")
"""owner/name, and what is below; no path of Windows."""


@checked(wraps=CheckpointError)
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
    source = str(files) if os.path.exists(path) else "/".join(part for part in (str(path), site) if part)
    return read(files, format, facts, dtype, source, expected_class).to(device or "cpu")


@checked(wraps=CheckpointError)
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
        told = what_is(path) or f"{files.listing().strip()} Give the folder of a run."
        raise CheckpointError(f"There is no dictionary in '{files}'. {told}")
    if told := unfinished(Path(path)):
        logger.warning("%s", told)
    if wanted is not None:
        asked = {site: place for site, place in sites.items() if wanted(site) or files.at(place).has(WEIGHTS)}
        sites = asked or sites  # names that say nothing exclude nothing
    return {
        site: read(files.at(place), format, facts, dtype, f"{path}/{place}".rstrip("/")).to(device or "cpu")
        for site, place in sites.items()
    }


@checked(wraps=CheckpointError)
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
    known.check(dictionary)
    check_finite(dictionary)
    folder = Path(path)
    foreign = [name for name in WHOLE if (folder / name).exists() and name not in known.needed]
    if foreign:
        raise CheckpointError(
            f"'{folder}' holds {', '.join(foreign)} of a dictionary in another format; with both in one folder "
            "neither can be read. Write to another folder."
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


@checked(wraps=CheckpointError)
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
        site: one of several dictionaries; all by default.
        format: the format to read, where the files alone do not tell.
        revision: branch, tag or commit of the repository.
        hook_name: see `write_dictionary`, as for hook_name_out and model_name.
        facts: facts that the format needs and the files do not hold.

    Returns:
        The folders that were written.

    Raises:
        CheckpointError: the source cannot be read, or the format cannot express a dictionary.
    """
    writable_format(to)
    files = find_files(source, site=site, revision=revision, many=site is None)
    places = sites_in(files) if site is None else {}
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
        _warn_of_losses(dictionary.info, read(Files(target), to, {}).info, target, to)
    return written


def _warn_of_losses(info: DictionaryInfo, there: DictionaryInfo, target: Path, to: str) -> None:
    """Warns of what is known of a dictionary, and is not in the files to which it was converted."""
    known = {"its site": info.sites, "the site that it writes": info.target_sites, "its model": (info.model or "",)}
    held = (there.sites, there.target_sites, there.model)
    lost = [
        f"{what} ({', '.join(names)})"
        for (what, names), own in zip(known.items(), held, strict=True)
        if any(names) and not own
    ]
    if lost:
        logger.warning(
            "The files of %s in '%s' do not tell %s. Note it beside them: evaluate and others ask for it.",
            to, target, " and ".join(lost),
        )  # fmt: skip


def find_files(
    path: str | os.PathLike, *, site: str | None = None, revision: str | None = None, many: bool = False
) -> Files:
    """Returns the files at a path or in a hub repository, fetched as needed, or of a site below."""
    if not os.path.exists(path) and (told := unfinished(Path(path).parent)):
        raise CheckpointError(f"There is no dictionary at '{path}' yet. {told}")
    if not os.path.exists(path) and isinstance(path, str) and _REPOSITORY.fullmatch(path):
        from dictionary_learning.interop._hub import fetch  # which loads dictionaries itself

        files = fetch(path, site=site, revision=revision, many=many)
    else:
        files = Files(path)
        if revision is not None:
            logger.warning("'%s' is a local folder, which has no revision; %s is ignored.", path, revision)
    if site is None:
        return files
    site, sites = check_relative(site, f"'{files}'"), sites_in(files)
    if site not in sites and not (files.folder / site).exists():
        known = ", ".join(sites) or "none"
        raise CheckpointError(f"'{files}' has no site '{site}'. There are: {known}. Give one of them.")
    return files.at(sites.get(site, site))


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
                f"'{files}' holds {len(sites)} dictionaries: {shorten(list(sites))}. Say which by site=, or use "
                "load_many."
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
    bad = nonfinite_names(dictionary)
    if bad:
        raise CheckpointError(
            f"'{files}' gives values that are not finite in {bad[0]}; it is damaged, or the run that wrote it had "
            "diverged."
        )
    if dtype is None and known.name != "own" and dictionary.dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32  # in which other packages compute, whatever they store
    dictionary = dictionary if dtype is None else dictionary.to(dtype)
    dictionary.info = DictionaryInfo.from_config(config, source, known.name)
    return dictionary
