"""What a cache says of itself: `index.json`."""

import dataclasses
import json
from typing import Any

from dictionary_learning.activations.cache.store import Store
from dictionary_learning.config import BaseConfig
from dictionary_learning.errors import DataError
from dictionary_learning.sites import Site

INDEX = "index.json"
FORMAT = "dictionary_learning.activations"
VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard(BaseConfig):
    """A file of rows."""

    file: str
    """Its name within the cache."""
    n_rows: int
    """How many rows it holds."""
    n_bytes: int
    """How large it is."""
    sha256: str
    """Its checksum, in hexadecimal digits."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """All that is known of a cache.

    `settings` is what decides which rows there are and in which order; `shards` are those that are complete; `state` is where the
    writer goes on, and None where it has ended.
    """

    settings: dict[str, Any]
    shards: tuple[Shard, ...] = ()
    state: dict[str, Any] | None = None
    filter: dict[str, Any] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def widths(self) -> dict[Site, int]:
        """The sites, and their widths."""
        return {Site.parse(site): width for site, width in self.settings["sites"].items()}

    @property
    def n_rows(self) -> int:
        """How many rows are there."""
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """How large all shards are together."""
        return sum(shard.n_bytes for shard in self.shards)

    @property
    def is_complete(self) -> bool:
        """Whether the writer has ended."""
        return self.state is None

    def save(self, store: Store) -> None:
        """Writes the index, in one step."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "complete": self.is_complete,
            "n_rows": self.n_rows,
            **self.settings,
            "filter": self.filter,
            "dropped": self.dropped,
            "shards": [shard.to_dict() for shard in self.shards],
            "state": self.state,
        }
        store.write(INDEX, (json.dumps(document, indent=1) + "\n").encode())


_OF_THE_INDEX = ("format", "version", "complete", "n_rows", "filter", "dropped", "shards", "state")
NEEDED = ("sites", "dtype", "compression", "model", "source", "ctx_len")
"""Settings that every cache has."""


def load_index(store: Store) -> Index:
    """Returns the index of a cache.

    Raises:
        DataError: there is none, or it was not written by this package.
    """
    if not store.exists(INDEX):
        raise DataError(
            f"'{store.path}' has no {INDEX}, so it is no cache of activations. Write one with `dictionary-learning cache`."
        )
    try:
        document = json.loads(store.read(INDEX))
        if document.get("format") != FORMAT:
            raise ValueError(f"its format is {document.get('format')!r}, not {FORMAT!r}")
        if document["version"] != VERSION:
            raise ValueError(f"it is of version {document['version']}, and this package reads version {VERSION}")
        settings = {name: value for name, value in document.items() if name not in _OF_THE_INDEX}
        missing = [name for name in NEEDED if name not in settings]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        shards = tuple(Shard.from_dict(shard) for shard in document["shards"])
        index = Index(
            settings=settings,
            shards=shards,
            state=document["state"],
            filter=document["filter"],
            dropped=document["dropped"],
        )
        if not index.widths or any(not isinstance(w, int) or w < 1 for w in index.widths.values()):
            raise ValueError("its sites have no widths")
        for shard in shards:
            store.file(shard.file)
        return index
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{store.path}/{INDEX}' cannot be read: {error}. Write the cache again, or upgrade the package."
        ) from error


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Returns in words where the settings of two caches differ; what else was noted in them does not count."""
    names = sorted((ours.keys() | theirs.keys()) - {"run"})
    names = [name for name in names if ours.get(name) != theirs.get(name)]
    return [f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here" for name in names]
