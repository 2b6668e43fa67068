"""The index of a cache, `index.json`, and the fingerprints of its text and its model."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dictionary_learning._border import said
from dictionary_learning._what_is import what_is
from dictionary_learning.activations.cache._store import Store
from dictionary_learning.config import BaseConfig
from dictionary_learning.errors import DataError
from dictionary_learning.sites import Site

INDEX = "index.json"
FORMAT = "dictionary_learning.activations"
VERSION = 1
_INDEX_FIELDS = ("format", "version", "complete", "n_rows", "filter", "dropped", "shards", "state")
"""Entries of the document that are not settings."""
NEEDED = ("sites", "dtype", "compression", "model", "source", "ctx_len")  # settings that every cache has
# settings that caches of earlier versions lack, and what a difference means
FINGERPRINTS = {
    "text_fingerprint": "the text is another one",
    "model_fingerprint": "the model has other weights",
}
PARTS = "parts"
"""The setting that says how many processes wrote a cache, where these were several."""
_FINGERPRINT_LENGTH = 16  # hexadecimal digits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard(BaseConfig):
    """A file of rows."""

    file: str
    """Name within the cache."""
    n_rows: int
    n_bytes: int
    sha256: str
    """Checksum for `verify`, in hexadecimal digits."""
    crc32: int | None = None
    """Fast checksum, compared when the file is opened; None in caches of earlier versions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """Everything that is known about a cache."""

    settings: dict[str, Any]  # they determine the rows and their order
    shards: tuple[Shard, ...] = ()  # the complete ones
    state: dict[str, Any] | None = None  # the writer's position; None if the cache is complete
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
    """Checks that a shard is there, with its size."""
    size = store.size(shard.file) if store.exists(shard.file) else None
    if size != shard.n_bytes:
        got = "is not there" if size is None else f"has {size} bytes"
        raise DataError(
            f"'{store.path}/{shard.file}' {got}; the index says {shard.n_bytes} bytes. Write the cache again."
        )


def load_index(store: Store) -> Index:
    """Returns the index of a cache."""
    if not store.exists(INDEX):
        told = what_is(store.path) or "Write one with `dictionary-learning cache`."
        raise DataError(f"'{store.path}' has no {INDEX}, so it is no cache of activations. {told}")
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
            **{name: document[name] for name in ("state", "filter", "dropped")},
        )
        widths: list[Any] = list(index.widths.values())
        if not widths or any(not isinstance(width, int) or width < 1 for width in widths):
            raise ValueError("its sites have no widths")
        for shard in index.shards:
            store.file(shard.file)  # refuses names that lead out of the folder
        return index
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{store.path}/{INDEX}' cannot be read: {said(error)} Write the cache again, or upgrade the package."
        ) from error


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Returns in words how a writer's settings differ from a cache's; "run" and the parts may."""
    found: list[str] = []
    for name in sorted((ours.keys() | theirs.keys()) - {"run", PARTS, *FINGERPRINTS}):
        mine, other = ours.get(name), theirs.get(name)
        if mine != other:
            found.append(f"{name}: {other!r} there, {mine!r} here")
    # other settings, such as ctx_len, change the first contexts too
    if found:
        return found
    both = ours.keys() & theirs.keys()
    return [meaning for name, meaning in FINGERPRINTS.items() if name in both and ours[name] != theirs[name]]


def inputs_fingerprint(inputs: Any) -> str:
    """Returns a hash of the inputs of a model: tensors, alone or in mappings and sequences."""
    digest = hashlib.sha256()
    for name, tensor in _tensors(inputs, ""):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)} {plain.dtype}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:_FINGERPRINT_LENGTH]


def model_fingerprint(model: Any) -> str:
    """Returns a hash of a `TracedModel` or `ModelSet`: config, parameter shapes and some values.

    A parameter's first, middle and last value are cheap to read, and any training changes them.
    """
    digest = hashlib.sha256()
    for traced in getattr(model, "models", {"": model}).values():
        module: nn.Module = traced.module
        # numbers only: names of classes and files change between versions and machines
        config: Any = getattr(module, "config", None)
        values: dict[str, Any] = config.to_dict() if hasattr(config, "to_dict") else {}
        numbers = {name: value for name, value in values.items() if type(value) in (int, float)}
        digest.update(json.dumps(numbers, sort_keys=True).encode())
        for name, parameter in module.named_parameters():
            digest.update(f"{name} {tuple(parameter.shape)} {_values(parameter.detach())}".encode())
    return digest.hexdigest()[:_FINGERPRINT_LENGTH]


def _values(parameter: Tensor) -> list[float]:
    if parameter.device.type == "meta" or not parameter.numel():
        return []  # a model on a server has no values here
    places = [tuple(int((n - 1) * share) for n in parameter.shape) for share in (0, 0.5, 1)]
    return torch.stack([parameter[place] for place in places]).cpu().double().tolist()


def _tensors(inputs: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(inputs, Tensor):
        yield name, inputs
    elif isinstance(inputs, (Mapping, list, tuple)):
        parts: Any = inputs
        for key, value in parts.items() if isinstance(inputs, Mapping) else enumerate(parts):
            yield from _tensors(value, f"{name}.{key}")
