"""A dictionary on disk: `dictionary.safetensors` with its tensors, and `config.json` with all that is known of it.

`config.json` has a section "dictionary" with the class and the arguments that build it; the header of the tensors holds
the same section, so that two files of different saves are not taken for one. The other sections are the saver's:
"trainer", "site", "model", "data", "scaling", "run" and "versions".
"""

import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dictionary_learning.dictionaries.base import DICTIONARIES, Dictionary
from dictionary_learning.errors import CheckpointError, DictionaryLearningError, did_you_mean

WEIGHTS = "dictionary.safetensors"
CONFIG = "config.json"
FORMAT_VERSION = 1


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
    text = json.dumps(document, indent=2) + "\n"
    write_atomically(folder / CONFIG, lambda temporary: temporary.write_text(text))
    return folder


def load_dictionary(
    path: str | os.PathLike, device: torch.device | str | None = None
) -> tuple[Dictionary, dict[str, Any]]:
    """Loads a dictionary and its config from the folder that it was saved in.

    Args:
        path: the folder.
        device: where to put it; the CPU if not given.

    Raises:
        CheckpointError: the folder holds no dictionary, or its files are damaged or do not fit each other.
    """
    folder = Path(path)
    config = read_config_file(folder)
    section = dict(config["dictionary"])
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            header = json.loads((file.metadata() or {}).get("dictionary", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except FileNotFoundError:
        raise CheckpointError(f"'{folder}' has a {CONFIG} but no {WEIGHTS}. Save the dictionary again.") from None
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"'{folder / WEIGHTS}' cannot be read ({error}); it may be cut off. Save it again."
        ) from error
    if header != section:
        raise CheckpointError(
            f"In '{folder}', {CONFIG} describes {section} and {WEIGHTS} holds {header}: the two files are of different saves."
        )
    try:
        dictionary = DICTIONARIES[section.pop("class")](**section)
    except (DictionaryLearningError, TypeError, KeyError) as error:
        raise CheckpointError(f"'{folder / CONFIG}' describes no dictionary that can be built: {error}") from error
    _check_tensors(dictionary, tensors, folder)
    dictionary.to(next(iter(tensors.values())).dtype)  # of the parameters; buffers such as thresholds keep theirs
    dictionary.load_state_dict(tensors)
    return dictionary.to(device or "cpu"), config


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a temporary file beside the path, then moves it there in one step."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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


def _check_tensors(dictionary: Dictionary, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in dictionary.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != got:
        wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        detail = "; ".join(
            f"{name}: needed {expected.get(name, 'nothing')}, got {got.get(name, 'nothing')}" for name in wrong
        )
        raise CheckpointError(f"The tensors in '{folder}' do not fit its {type(dictionary).__name__}. {detail}.")
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"'{folder}' holds values that are not finite in {', '.join(bad)}; the run that wrote it had diverged."
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
