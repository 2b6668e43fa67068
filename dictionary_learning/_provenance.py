"""`run.json`: what a run was made of, so that it can be repeated and compared.

It is written before the first step, and completed when the run ends, however it ends. All that two
equal runs do not share, such as times and folders, is in its section "volatile".
"""

import datetime
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from dictionary_learning import ops
from dictionary_learning._disk import sha256_of, write_atomically, write_json
from dictionary_learning._hardware import describe_hardware, peak_memory
from dictionary_learning._model_set import ModelSet
from dictionary_learning._plain import to_plain
from dictionary_learning._run_folder import COMMAND, DRAWN_SEEDS, OPTIONS, RUN_FILE
from dictionary_learning._secrets import HIDDEN, is_secret, without_secrets
from dictionary_learning._what_is import what_is
from dictionary_learning.activations.cache._index import model_fingerprint
from dictionary_learning.data import Source
from dictionary_learning.data._reading import files_of, samples_of
from dictionary_learning.dictionaries._serialization import versions
from dictionary_learning.errors import ConfigError
from dictionary_learning.interop._files import weights_in
from dictionary_learning.models import TracedModel
from dictionary_learning.parallel import TracedElsewhere

logger = logging.getLogger(__name__)

RUN = "run.json"
"""The name of the file, in the folder of the run."""
_VERSION = 1
_MOST_HASHED = 1 << 30
"""Bytes of a data file up to which its contents are hashed: about a second."""
_GIT_SECONDS = 10


class RunRecord:
    """Writes `run.json`, in a `with` block around the steps of a run.

    Args:
        folder: The folder of the run; None writes nothing.
        describe: Returns what makes the run this one (see `describe_run`), with its `contents`.
        data: The data of the run.
        device: Where it trains.
        step: Steps made before: a run that is resumed adds a session to those in the file.
        n_tokens: Tokens that those steps trained on.
        arguments: The arguments that change no dictionary, but what is saved.

    Raises:
        ConfigError: The folder has a file of this name that no run wrote.
    """

    def __init__(
        self,
        folder: Path | None,
        describe: Callable[[], Any],
        data: Any,
        device: torch.device,
        step: int,
        n_tokens: int,
        arguments: Mapping[str, Any],
    ):
        self.folder, self._describe, self._data, self._device = folder, describe, data, device
        self.step, self.n_tokens = step, n_tokens
        self._arguments, self._session = arguments, {"start": _now(), "first_step": step + 1}
        self._document: dict[str, Any] = {}

    def __enter__(self) -> "RunRecord":
        if self.folder is None:
            return self
        before = read_run(self.folder) if (self.folder / RUN).is_file() else None
        command, run = COMMAND.get(), self._describe()
        arguments = to_plain(dict(self._arguments), "the run's arguments")
        (arguments["run_cfg"] or {}).pop("save_dir", None)  # it is what equal runs differ in
        environment = _environment(self._device)
        sessions: list[Any] = before["volatile"]["sessions"] if before and self.step else []
        if sessions and before and before["environment"] != environment:
            sessions[-1]["environment"] = before["environment"]  # of a session on another machine
        self._document = {
            "format_version": _VERSION,
            "command": command and _shown(command),
            "arguments": arguments,
            "run": run,
            "seeds": _seeds(run),
            "data": run.pop("contents"),
            "environment": environment,
            "dictionaries": {},
            "volatile": {
                "folder": str(self.folder.resolve()),
                "directory": _working_directory(),
                "program": _shown(sys.argv),
                "sessions": [*sessions, self._session],
            },
        }
        try:
            self._write()
            if (options := OPTIONS.get()) is not None:
                write_atomically(self.folder / RUN_FILE, lambda file: file.write_text(options, encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"'{self.folder / RUN}' cannot be written ({error}). Move what is there.") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.folder is None:
            return
        end = {"end": _now(), "last_step": self.step, "outcome": "finished" if kind is None else kind.__name__}
        self._session.update(end)
        self._session["peak_memory"] = peak_memory(self._device)
        try:
            run = self._describe()  # counts of what was read are final now
            run.pop("contents")
            self._document["run"] = run
            self._document["data"] |= {"n_tokens": self.n_tokens, **_place(self._data)}
            weights = [path for place in sorted(self.folder.glob("trainer_*")) if (path := weights_in(place))]
            self._document["dictionaries"] = {path.parent.name: sha256_of(path) for path in weights}
            if best := _best(self.folder):
                self._document["best"] = best
            self._write()
        except Exception as failure:  # noqa: BLE001  (what was trained must not be lost with a record of it)
            logger.warning("'%s' could not be completed (%s).", self.folder / RUN, failure)

    def _write(self) -> None:
        assert self.folder is not None
        write_json(self.folder / RUN, self._document)


def read_run(folder: Path) -> dict[str, Any]:
    """Returns the contents of a run's `run.json`.

    Raises:
        ConfigError: There is none, or this package did not write it.
    """
    try:
        document = json.loads((folder / RUN).read_text(encoding="utf-8"))
        _ = document["environment"], document["run"], document["volatile"]["sessions"]
    except OSError:  # there is none, or a folder
        told = what_is(folder) or "Give the folder of a run that this version trained."
        raise ConfigError(f"'{folder}' has no {RUN}. {told}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"'{folder / RUN}' is of no run ({error}). Move it, or give another folder.") from error
    return document


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return None


def _best(folder: Path) -> dict[str, Any]:
    """Returns metric, value, step and checksum of the best dictionaries that were kept."""
    found: dict[str, Any] = {}
    for place in sorted(folder.glob("trainer_*/best")):
        if (weights := weights_in(place)) is None:
            continue
        # other packages' configs have no section for it
        beside, config = place / "best.json", place / "config.json"
        read = json.loads((beside if beside.is_file() else config).read_text(encoding="utf-8"))
        said = read if beside.is_file() else read.get("best", {})
        facts = {key: said[key] for key in ("metric", "value", "step", "n_tokens") if key in said}
        found[place.parent.name] = {**facts, "sha256": sha256_of(weights)}
    return found


def _shown(words: Sequence[str]) -> list[str]:
    """Returns the words of a command without secrets, also where an option names them."""
    named = [False, *(word.startswith("--") and is_secret(word) for word in words)]
    return [HIDDEN if is_value else without_secrets(word) for is_value, word in zip(named, words, strict=False)]


def _environment(device: torch.device) -> dict[str, Any]:
    ours = (name for name in os.environ if name.startswith("DICTIONARY_LEARNING_"))
    names = sorted(name for name in ours if name != DRAWN_SEEDS)  # the seeds themselves are recorded
    return {
        "versions": versions("datasets", "numpy", "safetensors", "triton"),
        "git": _git(),
        "hardware": describe_hardware(device),
        "operations": ops.status(device),
        "variables": {name: os.environ[name] for name in names},
    }


def _git() -> dict[str, Any] | None:
    """Returns the commit of the folder that the user is in; None outside of a repository."""

    def answer(*words: str) -> str:
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": _GIT_SECONDS, "check": True}
        return subprocess.run(["git", *words], **options).stdout.strip()

    try:
        # files that git does not know do not count: runs may be among them
        changed = bool(answer("status", "--porcelain", "--untracked-files=no"))
        return {"commit": answer("rev-parse", "HEAD"), "has_changes": changed}
    except (OSError, subprocess.SubprocessError):
        return None


def _source(data: Any) -> Source | None:
    source = getattr(getattr(data, "tokens", None), "source", None)
    return source if isinstance(source, Source) else None


def _place(data: Any) -> dict[str, Any]:
    """Returns the documents read in this pass, and the passes before, where documents are read."""
    if isinstance(data, TracedElsewhere):
        return data.ask(_place)
    if _source(data) is None:
        return {}
    # what a thread has read ahead does not count
    state = data.reader.state_dict()["stream"] if hasattr(data, "reader") else data.tokens.state_dict()
    source = state.get("source", state)
    return {"n_documents": source["position"], "epoch": source["epoch"]}


def contents_of(data: Any) -> dict[str, Any]:
    """Returns what tells the text, the rows and the model of a run from others of the same names.

    Files have checksums up to 1 GiB, and sizes above it. Of documents in memory and of the model's
    weights, some stand for all. A stream that can be read only once has nothing.
    """
    if isinstance(data, TracedElsewhere):
        return data.ask(contents_of)
    parts = [data, *getattr(data, "sources", ())]
    texts = [contents_of_text(_source(part), getattr(part, "model", None)) for part in parts]
    rows = [found for part in parts if (found := _rows_fingerprint(part)) is not None]
    return {
        "files": [file for text in texts for file in text["files"]],
        "documents": [sample for text in texts for sample in text["documents"]],
        "rows": rows[0] if len(rows) == 1 else rows or None,
        "model": next((text["model"] for text in texts if text["model"]), None),
    }


def contents_of_text(source: Source | None, model: Any) -> dict[str, Any]:
    """Returns the same of documents and the model that reads them."""
    reader = getattr(source, "reader", None)
    return {
        "files": [_file(path) for path in files_of(reader)],
        "documents": samples_of(reader),
        "model": model_fingerprint(model) if isinstance(model, (TracedModel, ModelSet)) else None,
    }


def _file(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    return {"name": path.name, "size": size, "sha256": sha256_of(path) if size <= _MOST_HASHED else None}


def _rows_fingerprint(data: Any) -> str | None:
    """Returns a hash of the checksums of a cache's files."""
    shards = getattr(getattr(data, "index", None), "shards", None)
    return shards and hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()


def _seeds(tree: Any, place: str = "") -> dict[str, Any]:
    """Returns every seed in a tree of JSON values, by its place."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    found: dict[str, Any] = {}
    for key, value in cast("list[tuple[Any, Any]]", items):
        inside = f"{place}.{key}" if place else str(key)
        found |= {inside: value} if str(key).endswith("seed") else _seeds(value, inside)
    return found


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
