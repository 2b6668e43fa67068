"""A state on disk: a folder that is complete, with checksums over its files, or absent.

`state.json` holds the tree of plain values, in which a tensor is named; `state.safetensors` holds
the tensors. Nothing is pickled. `manifest.json` is written last, with size and SHA-256 of every
file, into a folder beside the final one, which is then renamed.
"""

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dictionary_learning._disk import UNFINISHED, flush_to_disk, size_and_checksum, write_json
from dictionary_learning.errors import CheckpointError

MANIFEST = "manifest.json"
_TREE, _TENSORS = "state.json", "state.safetensors"
_VERSION = 1
_FOLDER = re.compile(r"step_(\d+)|\.step_(\d+)\..*" + re.escape(UNFINISHED))


class Checkpoint(NamedTuple):
    """A complete checkpoint: its folder, and the step after which it was written."""

    path: Path
    step: int


class Packed(NamedTuple):
    """A state as it is written: JSON values that name tensors, and copies of these tensors."""

    tree: Any
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Packed":
        """Copies nested dicts, lists, tuples, plain values and tensors; they may then change.

        Raises:
            CheckpointError: The state holds an object of another type.
        """
        tensors: dict[str, Tensor] = {}
        return cls(_packed(state, tensors, ""), tensors)


def write_checkpoint(
    root: Path, step: int, state: Packed | Mapping[str, Any], facts: Mapping[str, Any], *further: Callable[[Path], Any]
) -> Checkpoint:
    """Writes `root/step_<step>`, complete or not at all; one that is there is replaced.

    Args:
        root: The folder of a run's checkpoints.
        step: Steps made so far.
        state: What `Packed.of` takes, or returned.
        facts: JSON values that are stored in the manifest, and can be read without the state.
        further: Each writes files of its own into the folder that it is given.

    Raises:
        CheckpointError: The state holds an object of another type.
        OSError: The disk is full, or the folder cannot be written. What was there is unchanged.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step_{step}"
    folder = root / f".{final.name}.{secrets.token_hex(8)}{UNFINISHED}"
    folder.mkdir()
    try:
        tree, tensors = state if isinstance(state, Packed) else Packed.of(state)
        (folder / _TREE).write_text(json.dumps(tree), encoding="utf-8")
        save_file(tensors, folder / _TENSORS)
        for write in further:
            write(folder)
        files = {path.relative_to(folder).as_posix(): size_and_checksum(path) for path in _files(folder)}
        for path in [*_files(folder), *(path for path in folder.rglob("*") if path.is_dir())]:
            flush_to_disk(path)
        # the last one, and whole at any moment: a folder with a manifest is complete
        write_json(folder / MANIFEST, {"format_version": _VERSION, "step": step, "facts": dict(facts), "files": files})
        replace_folder(folder, final)
        flush_to_disk(root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Checkpoint(final, step)


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Returns the state of a checkpoint, after checking that every file is as it was written.

    Raises:
        CheckpointError: A file is missing, damaged or of a later version.
    """
    check_files(path)
    try:
        tree = json.loads((path / _TREE).read_text(encoding="utf-8"))
        return _unpacked(tree, load_file(path / _TENSORS, device=str(device)))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(
            f"The state in '{path}' cannot be read ({error}). Resume from another checkpoint."
        ) from error


def read_manifest(path: Path) -> dict[str, Any]:
    """Returns step, facts and files of a checkpoint.

    Raises:
        CheckpointError: The folder holds no manifest that this version can read.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, _ = (
            manifest["format_version"],
            (int(manifest["step"]), dict(manifest["facts"]), dict(manifest["files"])),
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is no complete checkpoint ({error}). Resume from another.") from error
    if version != _VERSION:
        raise CheckpointError(
            f"'{path}' has format version {version}; this package reads {_VERSION}. Upgrade the package."
        )
    return manifest


def check_files(path: Path) -> None:
    """Compares size and checksum of every file with the manifest.

    Raises:
        CheckpointError: They differ, or a file is missing or was added.
    """
    manifest = read_manifest(path)
    listed = manifest["files"]
    match = _FOLDER.fullmatch(path.name)
    if match and int(match[1] or match[2]) != manifest["step"]:
        raise CheckpointError(f"'{path}' holds the checkpoint of step {manifest['step']}; it was renamed or copied.")
    found = {
        file.relative_to(path).as_posix(): file for file in _files(path) if file.name != MANIFEST or file.parent != path
    }
    wrong = sorted(set(listed) ^ set(found)) or [
        name for name, file in found.items() if size_and_checksum(file) != listed[name]
    ]
    if wrong:
        raise CheckpointError(
            f"The checkpoint '{path}' is not as it was written: {', '.join(wrong[:3])} is missing, added or damaged. "
            "Resume from another checkpoint."
        )


def complete_checkpoints(root: Path) -> list[Checkpoint]:
    """Returns the checkpoints of a run whose manifest is there, the oldest first.

    A writer that is killed between its two renames leaves a complete folder under a name that
    begins with a dot.
    """
    found: dict[int, Checkpoint] = {}
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        match = _FOLDER.fullmatch(path.name)
        if match and (path / MANIFEST).is_file():
            step = int(match[1] or match[2])
            found[step] = Checkpoint(path, step)  # "." comes before "s": the finished one takes precedence
    return [found[step] for step in sorted(found)]


def remove_checkpoints(root: Path, keep_last: int, chosen: Collection[int] = ()) -> None:
    """Removes older checkpoints, and what killed writers left.

    Args:
        root: The folder of a run's checkpoints.
        keep_last: The number of newest ones that stay.
        chosen: Steps whose checkpoints stay: for each the first one at it or after it, since some
            have none, in the midst of an accumulated step.
    """
    checkpoints = complete_checkpoints(root)
    kept_steps = {next((c.step for c in checkpoints if c.step >= step), None) for step in chosen}
    for path, step in checkpoints[:-keep_last] if keep_last else checkpoints:
        if step not in kept_steps:
            (path / MANIFEST).unlink(missing_ok=True)  # without it, the rest counts as no checkpoint at any moment
            shutil.rmtree(path, ignore_errors=True)
    remove_incomplete(root)


def remove_incomplete(root: Path) -> None:
    """Removes the checkpoints of writers that were killed, but for those that are complete."""
    kept = {checkpoint.path for checkpoint in complete_checkpoints(root)}
    for path in root.glob(f".*{UNFINISHED}") if root.is_dir() else ():
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def replace_folder(folder: Path, final: Path) -> None:
    """Renames a folder over another. One step cannot do this: the old one is renamed first."""
    if not final.exists():
        os.rename(folder, final)
        return
    old = final.with_name(f".{final.name}.{secrets.token_hex(8)}{UNFINISHED}")
    os.rename(final, old)
    try:
        os.rename(folder, final)
    except OSError:
        os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _packed(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    """Returns a value as JSON: lists as lists, all else as objects whose one key names the kind."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}  # exact, with infinities and NaN
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{place}"  # the number keeps names apart where keys hold slashes
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()  # views of one storage cannot be saved
        return {"tensor": name}
    if isinstance(value, Mapping):
        pairs = [[key, _packed(item, tensors, f"{place}/{key}")] for key, item in value.items()]
        if all(isinstance(key, (str, int)) and not isinstance(key, bool) for key, _ in pairs):
            return {"dict": pairs}
    if isinstance(value, (list, tuple)):
        items = [_packed(item, tensors, f"{place}/{index}") for index, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    raise CheckpointError(
        f"The state holds a {type(value).__name__} at '{place}', which a checkpoint cannot store. Its `state_dict` "
        "should return tensors and plain values."
    )


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "dict":
        return {key: _unpacked(item, tensors) for key, item in inside}
    if kind == "tuple":
        return tuple(_unpacked(item, tensors) for item in inside)
    if kind == "tensor":
        return tensors[inside]
    return float.fromhex(inside) if kind == "float" else bytes.fromhex(inside)
