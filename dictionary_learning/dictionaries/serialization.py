"""A dictionary on disk: `dictionary.safetensors` with its tensors, and `config.json` with all that is known of it.

`config.json` has a section "dictionary" with the class and the arguments that build it; the header of the tensors holds
the same section, so that two files of different saves are not taken for one. The other sections are the saver's:
"trainer", "site", "model", "data", "scaling", "run" and "versions".
"""

import importlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dictionary_learning.dictionaries.base import DICTIONARIES, Dictionary
from dictionary_learning.disk import write_atomically, write_json
from dictionary_learning.errors import CheckpointError, did_you_mean

WEIGHTS = "dictionary.safetensors"
CONFIG = "config.json"
FORMAT_VERSION = 1
_LOADING = "dictionary_learning.interop.loading"


def save_dictionary(dictionary: Dictionary, path: str | os.PathLike, config: Mapping[str, Any] | None = None) -> Path:
    """Writes the dictionary into a folder; each file is complete or not there at any moment.

    Args:
        dictionary: what to save.
        path: the folder, which is made if need be.
        config: further sections of `config.json`.

    Returns:
        The folder.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    section = {"class": DICTIONARIES.name_of(type(dictionary)), **dictionary.options()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in dictionary.state_dict().items()}
    metadata = {"format": "dictionary_learning", "dictionary": json.dumps(section)}
    write_atomically(folder / WEIGHTS, lambda temporary: save_file(tensors, temporary, metadata))
    document = {"format_version": FORMAT_VERSION, "dictionary": section, **(config or {}), "versions": versions()}
    write_json(folder / CONFIG, document)
    return folder


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
    """Loads a dictionary and its config, of any format that `interop` reads.

    What is stored is kept: nothing is rescaled. Half precision of other packages is read as float32, as they compute with it.

    Args:
        path: a folder, a file of weights, or a repository of the Hugging Face hub as "owner/name" or "owner/name/folder".
        device: where to put it; the CPU if not given.
        site: which of several: a folder or file below, as "layers.10".
        format: the format, where the files alone do not tell.
        dtype: of the weights, instead of that stored.
        revision: branch, tag or commit of the repository.
        facts: what the files do not say and the format needs, as `k=50`.

    Raises:
        CheckpointError: there is no dictionary, or its files are damaged, do not fit each other, or may be of several formats.
    """
    # readers are above dictionaries, and found by name, as the entry points of a package are
    loading = importlib.import_module(_LOADING)
    return loading.load_dictionary(path, device, site=site, format=format, dtype=dtype, revision=revision, **facts)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("dictionary-learning", "torch", "nnsight", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def read_config_file(folder: Path) -> dict[str, Any]:
    """Returns the contents of `config.json` in the folder of a saved dictionary.

    Raises:
        CheckpointError: the folder or file is not there, or was not written by this package.
    """
    if not folder.is_dir():
        there = sorted(p.name for p in folder.parent.iterdir()) if folder.parent.is_dir() else []
        raise CheckpointError(
            f"There is no folder '{folder}'.{did_you_mean(folder.name, there)} Give the folder of a saved dictionary."
        )
    try:
        config = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError:
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise CheckpointError(
            f"'{folder}' has no {CONFIG}; it holds: {inside}. Give the folder of a saved dictionary."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"'{folder / CONFIG}' is not JSON ({error}).") from error
    return check_config(config, folder)


def check_config(config: Any, folder: Path) -> dict[str, Any]:
    """Returns the contents of `config.json`, if this package wrote them.

    Raises:
        CheckpointError: it did not, or in a later version.
    """
    if (
        not isinstance(config, dict)
        or not isinstance(config.get("dictionary"), dict)
        or "class" not in config["dictionary"]
    ):
        raise CheckpointError(
            f"'{folder / CONFIG}' has no section 'dictionary' with a class, so it was not written by this package."
        )
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"'{folder}' is of format version {config.get('format_version')}; this package reads version {FORMAT_VERSION}. Upgrade it."
        )
    return config
