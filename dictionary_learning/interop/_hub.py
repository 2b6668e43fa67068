"""Dictionaries on the Hugging Face hub, through its own client.

A repository is named "owner/name"; "owner/name/folder" is a place in it. Only the files of the
dictionary that was asked for are fetched, by their exact names. Without a connection the client's
cache serves what was fetched before.
"""

import glob
import logging
import os
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from dictionary_learning._border import checked
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._base import FORMATS
from dictionary_learning.interop._card import model_card
from dictionary_learning.interop._files import COPIES, ENDINGS, TRAINING, WHOLE, Files, check_relative, shorten
from dictionary_learning.interop._loading import load_dictionary, write_dictionary

logger = logging.getLogger(__name__)

_SETTINGS = ("cfg.json", "config.json", "hyperparams.json", "config.yaml", "conf.yaml")
_FAILURES = {
    "HFValidationError": "'{path}' is neither a folder nor the name of a repository ({error}). Check it.",
    "RepositoryNotFoundError": (
        "There is no folder '{path}', and no repository {named} on the hub. Check the name, or log in with `hf "
        "auth login`."
    ),
    "RevisionNotFoundError": "There is no {named}. Give a branch, a tag or a commit of it.",
    "LocalEntryNotFoundError": (
        "There is no folder '{path}', {named} is not in the cache, and the hub cannot be reached. Connect once, "
        "or give an existing folder."
    ),
    "Exception": "{named} cannot be fetched ({error}). Try again, or give a local folder.",
}
"""What is said for each of the client's errors, and their subclasses."""


@checked()
def load_from_hub(
    name: str | os.PathLike, site: str | None = None, device: torch.device | str | None = None, **options: Any
) -> Dictionary:
    """Loads a dictionary from the hub, or from a local folder where there is one of that name.

    Args:
        name: "owner/name", or "owner/name/folder".
        site: which of several dictionaries: a folder or file below.
        device: the CPU by default.
        options: further arguments of `load_dictionary`, such as `revision`.
    """
    return load_dictionary(name, device, site=site, **options)


def fetch(path: str, *, site: str | None = None, revision: str | None = None, many: bool = False) -> Files:
    """Fetches the files of one or of all dictionaries of a repository, and returns where they are.

    Raises:
        CheckpointError: there is no such repository, revision or dictionary; or no connection, and
            nothing in the cache.
    """
    path = check_relative(path, "a repository")
    owner, name, *folders = path.split("/")
    repository, inside = f"{owner}/{name}", "/".join(folders)
    place = "/".join(part for part in (inside, check_relative(site, f"'{path}'") if site else "") if part)
    named = f"'{repository}'" + (f" at revision '{revision}'" if revision else "")
    hub, failures = _client()
    try:
        listed = _listed(repository, revision)
        if listed is None:
            # no pattern asks for no file: without one, the client refuses a snapshot that is
            # incomplete
            snapshot = hub.snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[])
        else:
            paths = wanted(listed, place, many)
            _check_found(paths, listed, place, named, many)
            exact = [glob.escape(path) for path in paths]  # the client takes patterns
            snapshot = hub.snapshot_download(repository, revision=revision, allow_patterns=exact)
    except failures as error:
        said = _FAILURES[_kind(error)].format(path=path, named=named, error=error)
        raise CheckpointError(said) from error
    root = Path(snapshot).resolve()  # names must not lead out of the snapshot
    return Files(root / inside, root)


def wanted(listed: list[str], place: str, many: bool) -> list[str]:
    """Returns the files of a repository that dictionaries are read from."""
    patterns = {pattern.rpartition("/")[2] for _, known in FORMATS.items() for pattern in known.needed}
    found = []
    for path in listed:
        folder, _, name = path.rpartition("/")
        if TRAINING.fullmatch(name) or not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if many:
            # earlier steps of a run are not fetched unless they are named
            is_copy = any(part in COPIES for part in folder.removeprefix(place).split("/"))
            is_wanted = (place == "" or path.startswith(f"{place}/")) and not is_copy
        else:
            inner = path.removeprefix(f"{place}/") if place else path
            here = folder == place or inner == "checkpoints/final.safetensors" or _is_file(path, place)
            is_wanted = here or (name in _SETTINGS and folder in _settings_folders(place, listed))
        if is_wanted:
            found.append(path)
    return found


@checked(wraps=CheckpointError)
def push_to_hub(
    dictionary: Dictionary | str | os.PathLike,
    repository: str,
    *,
    site: str | None = None,
    format: str = "own",
    config: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | str | os.PathLike | None = None,
    revision: str | None = None,
    private: bool | None = None,
    message: str = "Add a dictionary",
) -> str:
    """Uploads a dictionary, or the folder of one or of a run, to the hub, with a model card.

    Args:
        dictionary: a folder is uploaded as it is.
        repository: "owner/name"; it is created if it does not exist.
        site: the folder in the repository; the top by default.
        format: the format that a dictionary is written in.
        config: what is known about the dictionary; sections not given are taken from
            `dictionary.info`.
        report: the report of an evaluation, or the path of its `report.json`, for the model card.
        revision: the branch.
        private: whether a repository that is created is private.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the format cannot express the dictionary, or the hub refuses.
    """
    place = check_relative(site, f"'{repository}'") if site else None
    if not isinstance(dictionary, Dictionary) and not Path(dictionary).is_dir():
        raise CheckpointError(f"There is no folder '{dictionary}'. Give a dictionary, or the folder of one.")
    with tempfile.TemporaryDirectory() as temporary:
        if isinstance(dictionary, Dictionary):
            config = {**dictionary.info.to_config(), **(config or {})}
            folder = write_dictionary(dictionary, temporary, format, config)
        else:
            folder = Path(dictionary)
        card = model_card(repository, report=report, config=config, site=site, format=format)
        hub, failures = _client()
        api, upload = hub.HfApi(), {"repo_id": repository, "revision": revision}
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            upload_of_files = {"folder_path": folder, "path_in_repo": place, "ignore_patterns": ["README.md", ".*"]}
            api.upload_folder(**upload_of_files, commit_message=message, **upload)
            upload_of_card = {"path_or_fileobj": card.encode(), "path_in_repo": "README.md"}
            commit = api.upload_file(**upload_of_card, commit_message=f"{message}: model card", **upload)
        except failures as error:
            raise CheckpointError(
                f"'{repository}' cannot be written ({error}). Check the name, and log in with `hf auth login`."
            ) from error
    return str(commit.commit_url)


def _client() -> tuple[Any, tuple[type[Exception], ...]]:
    """Returns the hub's client, and the errors of its functions."""
    # imported here, so that the package can be imported without waiting for it
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # the base is of the client's HTTP library, which is another in 1.0
    return huggingface_hub, (HfHubHTTPError.__bases__[0], HFValidationError, OSError)


def _listed(repository: str, revision: str | None) -> list[str] | None:
    """Returns the files of a repository; None without a connection."""
    hub, failures = _client()
    try:
        # one request without retries: where there is no connection, the cache is at hand
        return [file.rfilename for file in hub.HfApi().model_info(repository, revision=revision).siblings or []]
    except failures as error:
        if _kind(error) != "Exception":  # the hub has answered
            raise
        logger.warning("The hub cannot be reached (%s); '%s' is looked for in the cache.", error, repository)
        return None


def _kind(error: Exception) -> str:
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _FAILURES)


def _check_found(paths: list[str], listed: list[str], place: str, named: str, many: bool) -> None:
    """Checks that the files to fetch hold weights, of one dictionary where one is wanted."""
    names = {path.rpartition("/")[2] for path in paths}
    if names <= set(_SETTINGS):
        folders = sorted({path.rpartition("/")[0] or "." for path in listed if path.rpartition("/")[2] in WHOLE})
        at = f" at '{place}'" if place else ""
        raise CheckpointError(
            f"{named} has no dictionary{at}. There are dictionaries in: {shorten(folders) or 'none of its folders'}. "
            "Say which by site=."
        )
    parts = [entry.file_names for _, entry in FORMATS.items() if entry.file_names is not None]
    apart = [name for name in names if not any(pattern.fullmatch(name) for pattern in parts)]
    several = sorted(name for name in apart if name.endswith(ENDINGS) and name not in WHOLE)
    if not many and len(several) > 1 and not names.intersection(WHOLE):
        raise CheckpointError(f"{named} has a dictionary in each of: {shorten(several)}. Say which by site=.")


def _is_file(path: str, place: str) -> bool:
    """Returns whether a path is the file that is asked for, by its name or without its ending."""
    return place != "" and path in (place, *(f"{place}{ending}" for ending in (*ENDINGS, ".sae.pt")))


def _settings_folders(place: str, listed: list[str]) -> tuple[str, ...]:
    """Returns the folders of settings besides a place: beside a file, and above `checkpoints`."""
    folder, _, name = place.rpartition("/")
    if any(_is_file(path, place) for path in listed):
        return (folder, *_settings_folders(folder, []))
    return (folder,) if name == "checkpoints" else ()
