"""The index of a cache: `index.json`."""

import dataclasses
import json
from typing import Any

from dictionary_learning.activations.cache._store import Store
from dictionary_learning.config import BaseConfig
from dictionary_learning.errors import DataError
from dictionary_learning.sites import Site

INDEX = "index.json"
FORMAT = "dictionary_learning.activations"
VERSION = 1
_INDEX_FIELDS = ("format", "version", "complete", "n_rows", "filter", "dropped", "shards", "state")
"""Entries of the document that are not settings."""
NEEDED = ("sites", "dtype", "compression", "model", "source", "ctx_len")
"""Settings that every cache has."""
FINGERPRINTS = {
    "text_fingerprint": "the text is another one",
    "model_fingerprint": "the model has other weights",
}
"""Settings that caches of earlier versions lack, and what a difference means."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard(BaseConfig):
    """A file of rows."""

    file: str
    """Name within the cache."""
    n_rows: int
    """Number of rows."""
    n_bytes: int
    """Size of the file."""
    sha256: str
    """Checksum for `verify`, in hexadecimal digits."""
    crc32: int | None = None
    """Fast checksum, compared when the file is opened; None in caches of earlier versions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """Everything that is known about a cache.

    `settings` determine the rows and their order; `shards` are the complete ones; `state` is the
    writer's position, or None if the cache is complete.
    """

    settings: dict[str, Any]
    shards: tuple[Shard, ...] = ()
    state: dict[str, Any] | None = None
    filter: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    dropped: dict[str, int] = dataclasses.field(default_factory=dict[str, int])

    @property
    def widths(self) -> dict[Site, int]:
        """Width of each site."""
        return {Site.parse(site): width for site, width in self.settings["sites"].items()}

    @property
    def n_rows(self) -> int:
        """Number of rows in all shards."""
        return sum(shard.n_rows for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.n_bytes for shard in self.shards)

    @property
    def is_complete(self) -> bool:
        """Whether the writer has finished."""
        return self.state is None

    def save(self, store: Store) -> None:
        """Writes the index atomically."""
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


def check_file(store: Store, shard: Shard) -> None:
    """Checks that a shard is there, with its size.

    Raises:
        DataError: it is missing or has another size.
    """
    size = store.size(shard.file) if store.exists(shard.file) else None
    if size != shard.n_bytes:
        got = "is not there" if size is None else f"has {size} bytes"
        raise DataError(
            f"'{store.path}/{shard.file}' {got}; the index says {shard.n_bytes} bytes. Write the cache again."
        )


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
        document: dict[str, Any] = json.loads(store.read(INDEX))
        if document.get("format") != FORMAT:
            raise ValueError(f"its format is {document.get('format')!r}, not {FORMAT!r}")
        if document["version"] != VERSION:
            raise ValueError(f"it has version {document['version']}, and this package reads version {VERSION}")
        settings = {name: value for name, value in document.items() if name not in _INDEX_FIELDS}
        missing = [name for name in NEEDED if name not in settings]
        if missing:
            raise ValueError(f"it has no {', '.join(missing)}")
        index = Index(
            settings=settings,
            shards=tuple(Shard.from_dict(shard) for shard in document["shards"]),
            state=document["state"],
            filter=document["filter"],
            dropped=document["dropped"],
        )
        widths: list[Any] = list(index.widths.values())
        if not widths or any(not isinstance(width, int) or width < 1 for width in widths):
            raise ValueError("its sites have no widths")
        for shard in index.shards:
            store.file(shard.file)  # refuses names that lead out of the folder
        return index
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{store.path}/{INDEX}' cannot be read: {error}. Write the cache again, or upgrade the package."
        ) from error


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Returns in words how a writer's settings differ from a cache's; notes under "run" may differ."""
    names = sorted((ours.keys() | theirs.keys()) - {"run", *FINGERPRINTS})
    found = [
        f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
        for name in names
        if ours.get(name) != theirs.get(name)
    ]
    # other settings, such as ctx_len, change the first contexts too
    if found:
        return found
    both = {name: (ours[name], theirs[name]) for name in FINGERPRINTS if name in ours and name in theirs}
    return [FINGERPRINTS[name] for name, (mine, other) in both.items() if mine != other]
