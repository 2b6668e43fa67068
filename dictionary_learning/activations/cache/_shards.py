"""A shard: rows of all sites in one safetensors file, with the token of each row.

Tensors are named after sites (`model.layers.10:out`); int8 rows have their factors beside them
(`... | scale`). `token`, `document` and `position` are the origin of each row. A shard may be
compressed as a whole with zstandard.
"""

import hashlib
import zlib
from collections.abc import Mapping

import torch
import zstandard
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from dictionary_learning._border import said
from dictionary_learning.activations._reader import Rows
from dictionary_learning.activations._storage import as_dtype, from_bytes, to_bytes
from dictionary_learning.activations.cache._index import Shard, check_file
from dictionary_learning.activations.cache._store import Store
from dictionary_learning.errors import DataError
from dictionary_learning.sites import Site

ORIGIN: tuple[str, ...] = ("token", "document", "position")
_SCALE = " | scale"
_LEVEL = 1  # level of zstandard: activations are nearly noise, and higher levels compress them no better


def tensors_of(rows: Rows, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns rows in the form of a shard."""
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
    """

    def __init__(
        self, store: Store, shard: Shard, widths: Mapping[Site, int], dtype: torch.dtype | None, *, check: bool
    ):
        self._sites, self._dtype = list(widths), dtype
        where = f"{store.path}/{shard.file}"
        check_file(store, shard)
        is_mapped = store.is_local and not shard.file.endswith(".zst")
        try:
            content = None if is_mapped else store.read(shard.file)
            if check and shard.crc32 is not None:  # None in caches of earlier versions
                found = store.crc32(shard.file) if content is None else zlib.crc32(content)
                if found != shard.crc32:
                    raise ValueError("its checksum differs from the index, so the file is damaged")
            if content is None:
                self._tensors = load_file(store.file(shard.file))  # mapped: a page is read when one of its rows is
            else:
                is_plain = not shard.file.endswith(".zst")
                self._tensors = load(content if is_plain else zstandard.ZstdDecompressor().decompress(content))
        except (SafetensorError, zstandard.ZstdError, OSError, ValueError) as error:
            raise DataError(f"'{where}' cannot be read: {said(error)} Write the cache again.") from error
        shapes = {str(site): (shard.n_rows, width) for site, width in widths.items()}
        for name, shape in (shapes | dict.fromkeys(ORIGIN, (shard.n_rows,))).items():
            got = tuple(self._tensors[name].shape) if name in self._tensors else "nothing"
            if got != shape:
                raise DataError(f"'{where}' holds {got} under '{name}'; the index says {shape}. Write the cache again.")

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


def generator_of(seed: int, number: int) -> torch.Generator:
    """Returns a generator with a seed of its own for each pair of numbers."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) & 0x7FFF_FFFF_FFFF_FFFF)
