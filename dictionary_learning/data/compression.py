"""Reading compressed files: one that ends too early is an error, not a short text."""

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dictionary_learning.errors import DataError

COMPRESSIONS = (".zst", ".gz")
_CHUNK = 1 << 17


def open_bytes(path: Path) -> Any:
    """Opens a file for reading its bytes, decompressed."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    raw = open(path, "rb")  # noqa: SIM115  (closed with what wraps it, by the caller)
    return io.BufferedReader(_Zstandard(raw), _CHUNK) if path.suffix == ".zst" else raw


def lines_of(file: Any, path: Path) -> Iterator[bytes]:
    """Yields the lines of an open file.

    Raises:
        DataError: the file is damaged, or ends in the middle.
    """
    from zstandard import ZstdError

    try:
        yield from file
    except (EOFError, ZstdError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"'{path}' is damaged or was cut off ({error}). Download or write it again.") from error


def skip(file: Any, n: int, path: Path) -> None:
    """Goes to a byte of an open file; a compressed one is read up to there."""
    if path.suffix not in COMPRESSIONS:
        file.seek(n)
        return
    while n:
        read = len(file.read(min(n, _CHUNK)))
        if not read:
            raise DataError(
                f"'{path}' is shorter than when it was read before. Give the file that the run was started with."
            )
        n -= read


class _Zstandard(io.RawIOBase):
    """Frames of zstandard, one after another; zstandard's own reader takes a file that was cut off for one that has ended."""

    def __init__(self, raw: Any):
        self._raw = raw
        self._frame: Any = None
        self._given = b""  # compressed bytes that no frame took yet
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._advance():
            pass
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n

    def close(self) -> None:
        self._raw.close()
        super().close()

    def _advance(self) -> bool:
        """Decompresses some more; returns whether there may be more after that."""
        import zstandard

        given = self._given or self._raw.read(_CHUNK)
        self._given = b""
        if not given:
            if self._frame is not None:
                raise EOFError("it ends in the middle of a frame")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready = memoryview(self._frame.decompress(given))
        if self._frame.eof:
            self._given, self._frame = self._frame.unused_data, None
        return True
