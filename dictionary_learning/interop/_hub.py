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

from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import CheckpointError
from dictionary_learning.interop._base import FORMATS
from dictionary_learning.interop._card import model_card, read_report
from dictionary_learning.interop._convert import write_dictionary
from dictionary_learning.interop._files import COPIES, ENDINGS, TRAINING, WHOLE, Files, check_relative, shorten
from dictionary_learning.interop._loading import load_dictionary

logger = logging.getLogger(__name__)

_SETTINGS = ("cfg.json", "config.json", "hyperparams.json", "config.yaml", "conf.yaml")


def load_from_hub(
    name: str | os.PathLike, site: str | None = None, device: torch.device | str | None = None, **options: Any
) -> Dictionary:
    """Loads a dictionary from the hub, or from a local folder where there is one of that name.

    Args:
        name: "owner/name", or "owner/name/folder".
        site: which of several dictionaries: a folder or file below.
        device: the device of the dictionary; the CPU by default.
        options: further arguments of `load_dictionary`, such as `revision`.
    """
    return load_dictionary(name, device, site=site, **options)


def fetch(path: str, *, site: str | None = None, revision: str | None = None, many: bool = False) -> Files:
    """Fetches the files of one or of all dictionaries of a repository, and returns where they are.

    Raises:
        CheckpointError: there is no such repository, revision or dictionary; or no connection, and
            nothing in the cache.
    """
    path = check_relative(path, "a repository").rstrip("/")
    owner, name, *folders = path.split("/")
    repository, inside = f"{owner}/{name}", "/".join(folders)
    place = "/".join(part for part in (inside, check_relative(site, f"'{path}'") if site else "") if part)
    hub, errors, http_error = _client()
    named = f"'{repository}'" + (f" at revision '{revision}'" if revision else "")
    try:
        listed = _listed(repository, revision)
        if listed is None:
            snapshot = _cached(hub, repository, revision, named)
        else:
            paths = wanted(listed, place, many)
            _check_found(paths, listed, place, named, many)
            exact = [glob.escape(path) for path in paths]  # the client takes patterns
            snapshot = hub.snapshot_download(repository, revision=revision, allow_patterns=exact)
    except errors.HFValidationError as error:
        raise CheckpointError(
            f"'{path}' is neither a folder nor the name of a repository ({error}). Check it."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no folder '{path}', and no repository {named} on the hub. Check the name, or log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"There is no {named}. Give a branch, a tag or a commit of it.") from error
    except (http_error, OSError) as error:
        raise CheckpointError(f"{named} cannot be fetched ({error}). Try again, or give a local folder.") from error
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
        dictionary: the dictionary, or a folder that is uploaded as it is.
        repository: "owner/name"; it is created if it does not exist.
        site: the folder in the repository; the top by default.
        format: the format that a dictionary is written in.
        config: what is known about the dictionary; sections not given are taken from
            `dictionary.info`.
        report: the report of an evaluation, or the path of its `report.json`, for the model card.
        revision: the branch.
        private: whether a repository that is created is private.
        message: the commit's message.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the format cannot express the dictionary, or the hub refuses.
    """
    place = check_relative(site, f"'{repository}'") if site else None
    if not isinstance(dictionary, Dictionary) and not Path(dictionary).is_dir():
        raise CheckpointError(f"There is no folder '{dictionary}'. Give a dictionary, or the folder of one.")
    found = report if report is None or isinstance(report, Mapping) else read_report(Path(report))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if isinstance(dictionary, Dictionary):
            config = {**dictionary.info.to_config(), **(config or {})}
            write_dictionary(dictionary, folder, format, config)
        else:
            folder = Path(dictionary)
        card = model_card(repository, report=found, config=config, site=site, format=format)
        return _upload(folder, place, repository, card, revision, private, message)


def _upload(
    folder: Path,
    place: str | None,
    repository: str,
    card: str,
    revision: str | None,
    private: bool | None,
    message: str,
) -> str:
    """Uploads the files of a folder and a model card; returns the address of the commit."""
    hub, errors, http_error = _client()
    api, upload = hub.HfApi(), {"repo_id": repository, "revision": revision}
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        ignored = ["README.md", ".*"]
        api.upload_folder(
            folder_path=folder, path_in_repo=place, commit_message=message, ignore_patterns=ignored, **upload
        )
        described = f"{message}: model card"
        commit = api.upload_file(
            path_or_fileobj=card.encode(), path_in_repo="README.md", commit_message=described, **upload
        )
    except (http_error, errors.HFValidationError, OSError) as error:
        raise CheckpointError(
            f"'{repository}' cannot be written ({error}). Check the name, and log in with `hf auth login`."
        ) from error
    return str(commit.commit_url)


def _client() -> tuple[Any, Any, type[Exception]]:
    """Returns the hub's client, its errors, and the base of the errors of its HTTP library."""
    # imported here, so that the package can be imported without waiting for it
    import huggingface_hub
    from huggingface_hub import errors

    return huggingface_hub, errors, errors.HfHubHTTPError.__bases__[0]


def _listed(repository: str, revision: str | None) -> list[str] | None:
    """Returns the files of a repository; None without a connection."""
    hub, errors, http_error = _client()
    try:
        # one request without retries: where there is no connection, the cache is at hand
        return [file.rfilename for file in hub.HfApi().model_info(repository, revision=revision).siblings or []]
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError):
        raise
    except (http_error, OSError) as error:
        logger.warning("The hub cannot be reached (%s); '%s' is looked for in the cache.", error, repository)
        return None


def _cached(hub: Any, repository: str, revision: str | None, named: str) -> Path:
    """Returns the folder of a revision in the client's cache, which may be incomplete."""
    folder = Path(hub.constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision or ""
    if not commit or not (folder / "snapshots" / commit).is_dir():
        raise CheckpointError(
            f"There is no folder '{repository}', {named} is not in the cache, and the hub cannot be reached. Connect once, or give "
            "an existing folder."
        )
    return folder / "snapshots" / commit


def _check_found(paths: list[str], listed: list[str], place: str, named: str, many: bool) -> None:
    """Checks that the files to fetch hold weights, of one dictionary where one is wanted."""
    names = {path.rpartition("/")[2] for path in paths}
    if names <= set(_SETTINGS):
        folders = sorted({path.rpartition("/")[0] or "." for path in listed if path.rpartition("/")[2] in WHOLE})
        at = f" at '{place}'" if place else ""
        raise CheckpointError(
            f"{named} has no dictionary{at}. There are dictionaries in: {shorten(folders) or 'none of its folders'}. Say which by site=."
        )
    several = sorted(name for name in names if name.endswith(ENDINGS) and name not in WHOLE)
    if not many and len(several) > 1 and not names.intersection(WHOLE):
        raise CheckpointError(f"{named} has a dictionary in each of: {shorten(several)}. Say which by site=.")


def _is_file(path: str, place: str) -> bool:
    """Returns whether a path is the file that is asked for, by its name or without its ending."""
    return place != "" and path in (place, *(f"{place}{ending}" for ending in (*ENDINGS, ".sae.pt")))


def _settings_folders(place: str, listed: list[str]) -> tuple[str, ...]:
    """Returns the folders of settings besides a place: beside a file, and above `checkpoints`."""
    folder, _, name = place.rpartition("/")
    if any(_is_file(path, place) for path in listed):
        above, _, last = folder.rpartition("/")
        return (folder, above) if last == "checkpoints" else (folder,)
    return (folder,) if name == "checkpoints" else ()
