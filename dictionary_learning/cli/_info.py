"""`dictionary-learning info`: what this machine will use, or what is saved at a path."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dictionary_learning._run_folder import resolve_latest
from dictionary_learning._what_is import parts_of, unfinished
from dictionary_learning.cli._arguments import CommandArguments
from dictionary_learning.cli._output import write_facts, write_result
from dictionary_learning.cli._parser import option_of
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.cli._described import Described

logger = logging.getLogger(__name__)

_VERIFIED = "All checksums are right."


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoArguments(CommandArguments):
    """Shows how this machine computes each operation, and why; or what saved dictionaries are.

    What is saved is shown as a table in a terminal, and written as JSON elsewhere or with --json.
    """

    positional: ClassVar = ("paths",)
    paths: tuple[str, ...] = ()
    """Folders of dictionaries of any format, of runs, of cached activations, or of contexts."""
    verify: bool = False
    """Whether the files of a cache or of contexts are compared with their checksums."""
    format: str | None = None
    """The format of dictionaries, if their files do not tell."""
    k: int | None = None
    """The k of dictionaries, if their files do not tell."""
    scale: float | None = None
    """The factor on activations before encoding, if the files do not tell."""
    dict_class: str | None = None
    """The class of dictionary_learning, if there is no config."""

    def run(self) -> None:
        from dictionary_learning.activations.cache._index import INDEX
        from dictionary_learning.activations.cache._store import Store
        from dictionary_learning.cli._described import described, facts_of
        from dictionary_learning.interpretation._index import CONTEXTS

        found: dict[str, Any] = {}
        lines: list[str] = []
        given = self.options("format", "k", "scale", "dict_class").items()
        facts = {name: value for name, value in given if value is not None}
        for path in self.paths:
            is_other = (Path(path) / CONTEXTS).is_file() or Store(path).exists(INDEX)
            if facts and is_other:
                option = option_of(next(iter(facts)))
                raise ConfigError(f"Got {option}, and '{path}' holds no dictionary. Leave it out.")
            if (Path(path) / CONTEXTS).is_file():
                found[path] = _contexts(path, self.verify)
            elif is_other:
                found[path] = _cache(path, self.verify)
            else:
                place = resolve_latest(path)
                dictionaries = _dictionaries(place, facts)
                lines += described(place, list(dictionaries.values()))
                found |= {name: _as_json(one) for name, one in dictionaries.items()}
                continue
            lines += [path, *(f"  {line}" for line in facts_of(found[path]))]
        if self.paths:
            write_facts(found, lines)
        else:
            _show_machine()


def _dictionaries(place: str, facts: Mapping[str, Any]) -> "dict[str, Described]":
    """Returns each dictionary by its folder or name; no weights of ours are read.

    Raises:
        CheckpointError: there is none, or one cannot be read, is damaged, or has no use for a fact.
    """
    from dictionary_learning.cli._described import Described, begun, built_of
    from dictionary_learning.dictionaries._serialization import WEIGHTS, read_config_file
    from dictionary_learning.interop._own import check_weights
    from dictionary_learning.interop._saved import own_folders, saved_at

    found: dict[str, Described] = {}
    runs = [Path(place, part) for part in parts_of(Path(place))] if (Path(place) / "sweep.json").is_file() else [place]
    for run in () if facts else map(str, runs):
        folders = own_folders(run)
        for folder in folders:
            config = read_config_file(folder)
            check_weights(folder / WEIGHTS, config["dictionary"])
            found[str(folder)] = Described(config.get("name") or folder.name, str(folder), config, config["dictionary"])
        if not folders and unfinished(Path(run)):
            found |= {f"{run}/trainer_{n}": one for n, one in enumerate(begun(Path(run)))}
    if found:
        return found
    saved = saved_at(place, **facts)
    return {one.name: Described(one.name, place, one.config, built_of(one.dictionary)) for one in saved}


def _as_json(one: "Described") -> Mapping[str, Any]:
    own = "dictionary" in one.config
    return one.config if own else {"class": one.built_of["class"], **one.config}


def _show_machine() -> None:
    from dictionary_learning import ops
    from dictionary_learning._hardware import default_device, fast_dtype
    from dictionary_learning.dictionaries import DICTIONARIES
    from dictionary_learning.dictionaries._serialization import versions
    from dictionary_learning.dictionaries.nonlinearities import NONLINEARITIES
    from dictionary_learning.trainers import TRAINERS

    device = default_device()
    model_dtype = str(fast_dtype(device)).removeprefix("torch.")
    sections = {
        "versions": versions(),
        "hardware": {"device": str(device), "dtype of language models": model_dtype},
        "operations": ops.status(device),
        "known": {
            "trainers": ", ".join(name for name, _ in TRAINERS.items()),
            "dictionaries": ", ".join(DICTIONARIES),
            "nonlinearities": ", ".join(NONLINEARITIES),
        },
    }
    lines: list[str] = []
    for title, entries in sections.items():
        width = max(map(len, entries))
        lines += [title, *(f"  {name.ljust(width)}  {value}" for name, value in entries.items())]
    write_result(sections, lines)


def _cache(path: str, verify: bool) -> dict[str, Any]:
    """Returns what a cache holds.

    Raises:
        DataError: it is no cache, or it was to be verified and is damaged.
    """
    from dictionary_learning._plain import as_bytes, counted
    from dictionary_learning.activations.cache import ActivationCache

    cache = ActivationCache(path)
    index = cache.index
    # how this reader would serve the rows is no property of the cache
    config = {k: v for k, v in cache.config.items() if k not in ("out_batch_size", "end_of_data", "window")}
    config["sites"] = index.settings["sites"]
    state = "complete" if index.is_complete else "incomplete: the same `dictionary-learning cache` continues it"
    logger.info(
        "%s in %s, %s, %s.",
        counted(index.n_rows, "row"),
        counted(len(index.shards), "file"),
        as_bytes(index.n_bytes),
        state,
    )
    if verify:
        cache.verify()
        logger.info(_VERIFIED)
    held = {"rows": index.n_rows, "files": len(index.shards), "bytes": index.n_bytes, "complete": index.is_complete}
    return {**config, **held}


def _contexts(path: str, verify: bool) -> dict[str, Any]:
    """Returns what a store of contexts holds.

    Raises:
        DataError: it is damaged.
    """
    from dictionary_learning.interpretation import ContextStore

    store = ContextStore.open(path)
    if verify:
        store.verify()
        logger.info(_VERIFIED)
    facts = {
        name: {"class": store[name].class_name, "dict_size": store[name].dict_size, "site": str(store[name].site)}
        for name in store
    }
    return {"model": store.model, "data": store.data, "dictionaries": facts}
