"""Bytes of compressed files: gzip and zstandard.

pyarrow reads them, and not `gzip` or `zstandard`: it raises where a file was cut off, and reads
several frames, of which `zstandard` returns the first and says nothing.
"""

from pathlib import Path
from typing import Any

COMPRESSIONS = {".zst": "zstd", ".gz": "gzip"}
"""What suffixes of files mean, by the names of pyarrow."""


def decompressed(source: Path | bytes, suffix: str) -> Any:
    """Opens a file, or bytes of one, for reading what it holds.

    Args:
        source: a path, or the bytes themselves.
        suffix: of the file's name, one of `COMPRESSIONS`.

    Raises:
        OSError: what is read is damaged, or cut off; raised by pyarrow, when it is read.
    """
    import pyarrow

    place = pyarrow.py_buffer(source) if isinstance(source, bytes) else str(source)
    return pyarrow.input_stream(place, compression=COMPRESSIONS[suffix])
