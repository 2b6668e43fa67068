"""A shard: rows of all sites in one safetensors file, with the token of each row.

Tensors are named after sites (`model.layers.10:out`); int8 rows have their factors beside them
(`... | scale`). `token`, `document` and `position` are the origin of each row. A shard may be
compressed as a whole with zstandard.
"""

import hashlib
import zlib
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save, save_file
from torch import Tensor

from dictionary_learning.activations._reader import Rows
from dictionary_learning.activations._storage import as_dtype, from_bytes, to_bytes
from dictionary_learning.activations.cache._index import Shard, check_file
from dictionary_learning.activations.cache._store import Store
from dictionary_learning.errors import DataError
from dictionary_learning.sites import Site

ORIGIN: tuple[str, ...] = ("token", "document", "position")
_SCALE = " | scale"
_LEVEL = 1
"""Level of zstandard: activations are nearly noise, and higher levels compress them no better."""


def tensors_of(rows: Rows, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns rows in the form of a shard.

    Raises:
        DataError: an activation overflows in float16.
    """
    tensors = dict(zip(ORIGIN, (p.to(torch.int32) for p in (rows.token, rows.document, rows.position)), strict=True))
    for site, x in rows.activations.items():
        if dtype is torch.int8:
            tensors[str(site)], tensors[f"{site}{_SCALE}"] = to_bytes(x)
        else:
            tensors[str(site)] = as_dtype(x, dtype).contiguous()
    return tensors


def write_shard(store: Store, name: str, tensors: Mapping[str, Tensor], compression: str | None) -> Shard:
    """Writes a shard and returns its entry in the index."""
    tensors = dict(tensors)
    if store.is_local and compression is None:
        store.fill(name, lambda path: save_file(tensors, path))
        sha256, crc32 = checksum(store, name), store.crc32(name)
    else:
        content = save(tensors)
        if compression == "zstd":
            import zstandard

            content = zstandard.ZstdCompressor(level=_LEVEL).compress(content)
        store.write(name, content)
        sha256, crc32 = hashlib.sha256(content).hexdigest(), zlib.crc32(content)
    return Shard(file=name, n_rows=len(tensors["token"]), n_bytes=store.size(name), sha256=sha256, crc32=crc32)


def checksum(store: Store, name: str) -> str:
    """Returns the SHA-256 of a file."""
    digest = hashlib.sha256()
    for chunk in store.chunks(name):
        digest.update(chunk)
    return digest.hexdigest()


class OpenShard:
    """The rows of a shard at some sites; on a local disk, read from the mapped file.

    They are served in `dtype`, by default as they are stored. With `check`, the file's checksum is
    compared with the index.

    Raises:
        DataError: the file is missing, damaged, or differs from its entry in the index.
    """

    def __init__(
        self,
        store: Store,
        shard: Shard,
        widths: Mapping[Site, int],
        dtype: torch.dtype | None = None,
        *,
        check: bool = True,
    ):
        self._shard, self._sites, self._dtype = shard, list(widths), dtype
        self._where = f"{store.path}/{shard.file}"
        check_file(store, shard)
        try:
            if store.is_local and not shard.file.endswith(".zst"):
                if check:
                    self._compare(store.crc32(shard.file))
                self._tensors = _mapped(store.file(shard.file))
            else:
                content = store.read(shard.file)
                if check:
                    self._compare(zlib.crc32(content))
                self._tensors = load(_decompressed(content, shard.file))
        except (SafetensorError, OSError, ValueError) as error:
            raise DataError(f"'{self._where}' cannot be read: {error}. Write the cache again.") from error
        self._check(widths)

    def read(self, start: int, stop: int) -> dict[Site, Tensor]:
        """Returns a range of rows by site, (n, width) each; they may be views of the file."""
        return {site: self._rows(site, slice(start, stop)) for site in self._sites}

    def origin(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns token, document and position of a range of rows, (n,) each."""
        token, document, position = (self._tensors[name][start:stop].long() for name in ORIGIN)
        return token, document, position

    def _rows(self, site: Site, span: slice) -> Tensor:
        rows = self._tensors[str(site)][span]
        if rows.dtype is torch.int8:
            return from_bytes(rows, self._tensors[f"{site}{_SCALE}"][span], self._dtype or torch.float32)
        return rows if self._dtype is None else as_dtype(rows, self._dtype)

    def _compare(self, crc32: int) -> None:
        if self._shard.crc32 not in (None, crc32):
            raise ValueError("its checksum differs from the index, so the file is damaged")

    def _check(self, widths: Mapping[Site, int]) -> None:
        shapes = {str(site): (self._shard.n_rows, width) for site, width in widths.items()}
        shapes |= dict.fromkeys(ORIGIN, (self._shard.n_rows,))
        for name, shape in shapes.items():
            got = tuple(self._tensors[name].shape) if name in self._tensors else "nothing"
            if got != shape:
                raise DataError(
                    f"'{self._where}' holds {got} under '{name}'; the index says {shape}. Write the cache again."
                )


def generator_of(seed: int, number: int) -> torch.Generator:
    """Returns a generator with a seed of its own for each pair of numbers."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) & 0x7FFF_FFFF_FFFF_FFFF)


def _mapped(path: str) -> dict[str, Tensor]:
    """Returns tensors whose memory is the file: a page is read when one of its rows is."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)


def _decompressed(content: bytes, name: str) -> bytes:
    if not name.endswith(".zst"):
        return content
    import zstandard

    try:
        return zstandard.ZstdDecompressor().decompress(content)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
