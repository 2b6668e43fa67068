"""A dictionary on disk: `dictionary.safetensors` with tensors, `config.json` with all the rest.

`config.json` has a section "dictionary" with the class and the arguments that build it. The header
of the tensors repeats that section, so that files of two saves are not taken for one dictionary.
The other sections are "name", "site", "target_site", "trainer", "normalization", "buffer", "run"
and "versions".
"""

import functools
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dictionary_learning._border import check_local, checked
from dictionary_learning._disk import write_atomically, write_json
from dictionary_learning._plain import to_plain
from dictionary_learning.dictionaries._base import DICTIONARIES, Dictionary
from dictionary_learning.dictionaries._info import own_sections
from dictionary_learning.errors import CheckpointError, did_you_mean

WEIGHTS = "dictionary.safetensors"
CONFIG = "config.json"
FORMAT_VERSION = 1


@checked(wraps=CheckpointError)
def save_dictionary(
    dictionary: Dictionary, path: str | os.PathLike[str], config: Mapping[str, Any] | None = None
) -> Path:
    """Writes the dictionary into a folder, and returns its path.

    Each file is complete or absent at any moment. Sections of `config.json` that `config` does not
    have are taken from `dictionary.info`.

    Raises:
        CheckpointError: A tensor holds values that are not finite.
        ConfigError: The config holds an object that JSON cannot hold. Nothing has been written in
            either case.
    """
    check_finite(dictionary)
    folder = Path(path)
    check_local("folder", path)
    section = {"class": DICTIONARIES.name_of(type(dictionary)), **dictionary.options()}
    sections = own_sections({**dictionary.info.to_config(), **(config or {})})
    # before anything is written: a config that JSON cannot hold must leave no weights alone
    document = {"format_version": FORMAT_VERSION, "dictionary": section, **to_plain(sections), "versions": versions()}
    folder.mkdir(parents=True, exist_ok=True)
    # one entry only: safetensors writes several in random order, and files would differ
    write_tensors(folder / WEIGHTS, dictionary.state_dict(), {"dictionary": json.dumps(section)})
    write_json(folder / CONFIG, document)
    return folder


def write_tensors(path: Path, tensors: Mapping[str, Tensor | None], metadata: dict[str, str] | None = None) -> None:
    """Writes the tensors that are not None into a safetensors file, complete or not at all."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if tensor is not None}
    write_atomically(path, lambda temporary: save_file(plain, temporary, metadata))


def load_dictionary(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    *,
    site: str | None = None,
    format: str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    **facts: Any,
) -> Dictionary:
    """Loads a dictionary of any format; its attribute `info` says what is known about it.

    Weights are loaded as they are stored, and nothing is rescaled. Half precision of other packages
    is read as float32, in which those packages compute.

    Args:
        path: A folder, a file of weights, or a repository of the Hugging Face hub ("owner/name" or
            "owner/name/folder").
        device: The CPU by default.
        site: Which of several dictionaries: a folder or file below the path, such as "layers.10".
        format: The format, where the files alone do not tell.
        dtype: Dtype of the weights, instead of the stored one.
        revision: Branch, tag or commit of the repository.
        facts: Facts that the format needs and the files do not hold, such as `k=50`.

    Raises:
        CheckpointError: There is no dictionary, its files are damaged or inconsistent, or may be of
            several formats.
    """
    # readers depend on dictionaries, so they are imported by name, as plug-ins are
    loading = importlib.import_module("dictionary_learning.interop._loading")
    return loading.load_dictionary(path, device, site=site, format=format, dtype=dtype, revision=revision, **facts)


def nonfinite_names(dictionary: Dictionary) -> list[str]:
    """Returns the names of the tensors that hold a NaN or an infinity."""
    return [name for name, tensor in dictionary.state_dict().items() if not is_finite(tensor)]


def is_finite(tensor: Tensor) -> bool:
    """Returns whether a tensor holds no NaN and no infinity."""
    # either makes the sum one too, and a sum is ten times as fast; a finite one may overflow
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(total.isfinite()) or bool(tensor.isfinite().all())


def check_finite(dictionary: Dictionary) -> None:
    """Raises CheckpointError if a tensor of the dictionary holds values that are not finite."""
    bad = nonfinite_names(dictionary)
    if bad:
        raise CheckpointError(
            f"The {type(dictionary).__name__} holds values that are not finite in {', '.join(bad)}; its training has "
            "diverged. It is not written. Train again with a lower learning rate, or save an earlier step."
        )


def versions(*further: str) -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    packages = ("dictionary-learning", "torch", "nnsight", "transformers", *further)
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


@functools.cache
def _version(package: str) -> str:
    """Returns the version of a package, read from its file once: what is imported stays."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def read_config_file(folder: Path) -> dict[str, Any]:
    """Returns the contents of `config.json` in the folder of a saved dictionary.

    Raises:
        CheckpointError: The folder or file does not exist, or was not written by this package.
    """
    if not folder.is_dir():
        siblings = sorted(p.name for p in folder.parent.iterdir()) if folder.parent.is_dir() else []
        hint = did_you_mean(folder.name, siblings)
        raise CheckpointError(f"There is no folder '{folder}'.{hint} Give the folder of a saved dictionary.")
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
    """Returns the contents of `config.json` after checking that this package wrote them.

    Raises:
        CheckpointError: Another package, or a later version of this one, wrote them.
    """
    section = config.get("dictionary") if isinstance(config, dict) else None
    if not isinstance(section, dict) or "class" not in section:
        raise CheckpointError(
            f"'{folder / CONFIG}' has no section 'dictionary' with a class, so it was not written by this package."
        )
    version = config.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"'{folder}' is of format version {version}; this package reads version {FORMAT_VERSION}. Upgrade it."
        )
    return config
