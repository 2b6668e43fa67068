"""A shard: the rows of all sites in one safetensors file, with the token that each is of.

Tensors are named after the site (`model.layers.10:out`); rows of bytes have their factors beside them (`... | scale`). `token`,
`document` and `position` say where each row comes from. A shard may be compressed as a whole with zstandard.
"""

import hashlib
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from dictionary_learning.activations.cache.index import Shard
from dictionary_learning.activations.cache.store import Store
from dictionary_learning.activations.reader import Rows
from dictionary_learning.activations.storage import from_bytes, to_bytes
from dictionary_learning.errors import DataError
from dictionary_learning.sites import Site

PLACES: tuple[str, ...] = ("token", "document", "position")
_SCALE = " | scale"
_CHUNK = 1 << 22
_LEVEL = 1
"""Of zstandard: activations are nearly noise, and higher levels find no more in them."""


def tensors_of(rows: Rows, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns rows as a shard holds them."""
    tensors = dict(zip(PLACES, (p.to(torch.int32) for p in (rows.token, rows.document, rows.position)), strict=True))
    for site, x in rows.activations.items():
        if dtype is torch.int8:
            tensors[str(site)], tensors[f"{site}{_SCALE}"] = to_bytes(x)
        else:
            tensors[str(site)] = x.to(dtype).contiguous()
    return tensors


def write_shard(store: Store, name: str, tensors: Mapping[str, Tensor], compression: str | None) -> Shard:
    """Writes a shard, and returns what the index says of it."""
    tensors = dict(tensors)
    if store.is_local and compression is None:
        store.fill(name, lambda path: save_file(tensors, path))
        digest = checksum(store, name)
    else:
        content = save(tensors)
        if compression == "zstd":
            import zstandard

            content = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
        store.write(name, content)
        digest = hashlib.sha256(content).hexdigest()
    return Shard(file=name, n_rows=len(tensors["token"]), n_bytes=store.size(name), sha256=digest)


def checksum(store: Store, name: str) -> str:
    """Returns the checksum of a file."""
    if not store.is_local:
        return hashlib.sha256(store.read(name)).hexdigest()
    digest = hashlib.sha256()
    with open(store.file(name), "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class OpenShard:
    """The rows of a shard, read piece by piece; on a local disk, from the mapped file.

    Args:
        store: where it is.
        shard: what the index says of it.
        widths: the sites to read, and their widths.
        dtype: the type of activations that are served; None for that in which they are kept.

    Raises:
        DataError: the file is not there, is damaged, or is not what the index says.
    """

    def __init__(self, store: Store, shard: Shard, widths: Mapping[Site, int], dtype: torch.dtype | None = None):
        self._shard, self._sites, self._dtype = shard, list(widths), dtype
        self._where = f"{store.path}/{shard.file}"
        if not store.exists(shard.file) or store.size(shard.file) != shard.n_bytes:
            got = f"has {store.size(shard.file)} bytes" if store.exists(shard.file) else "is not there"
            raise DataError(f"'{self._where}' {got}; the index says {shard.n_bytes} bytes. Write the cache again.")
        try:
            if store.is_local and not shard.file.endswith(".zst"):
                self._tensors = _mapped(store.file(shard.file))
            else:
                self._tensors = load(_plain(store.read(shard.file), shard.file))
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(f"'{self._where}' cannot be read: {error}. Write the cache again.") from error
        self._check(widths)

    def read(self, start: int, stop: int) -> dict[Site, Tensor]:
        """Returns rows from one number to another, by site; they may be views of the file, to be copied."""
        return {site: self._rows(site, slice(start, stop)) for site in self._sites}

    def places(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the token, document and position of rows."""
        token, document, position = (self._tensors[name][start:stop].long() for name in PLACES)
        return token, document, position

    def _rows(self, site: Site, span: slice) -> Tensor:
        rows = self._tensors[str(site)][span]
        if rows.dtype is torch.int8:
            return from_bytes(rows, self._tensors[f"{site}{_SCALE}"][span], self._dtype or torch.float32)
        return rows if self._dtype is None else rows.to(self._dtype)

    def _check(self, widths: Mapping[Site, int]) -> None:
        shapes = {str(site): (self._shard.n_rows, width) for site, width in widths.items()}
        shapes |= dict.fromkeys(PLACES, (self._shard.n_rows,))
        for name, shape in shapes.items():
            got = tuple(self._tensors[name].shape) if name in self._tensors else "nothing"
            if got != shape:
                raise DataError(
                    f"'{self._where}' holds {got} under '{name}'; the index says {shape}. Write the cache again."
                )


def generator_of(seed: int, number: int) -> torch.Generator:
    """Returns what draws an order: another for each pair of numbers."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) & 0x7FFF_FFFF_FFFF_FFFF)


def _mapped(path: str) -> dict[str, Tensor]:
    """Returns tensors whose memory is the file: a page is read when one of its rows is."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)


def _plain(content: bytes, name: str) -> bytes:
    if not name.endswith(".zst"):
        return content
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompress(content)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
