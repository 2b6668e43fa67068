"""Token ids in arrays: in memory, in `.npy` files, or in `.bin` files, which hold only numbers."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dictionary_learning.data._document import ReadOptions, Tokenized, TokenRow
from dictionary_learning.data._reading import MapReader, Mark, Reader
from dictionary_learning.errors import ConfigError, DataError

_DTYPES = ("uint16", "uint32", "int32", "int64", "uint8")
_N_INSPECTED = 4096  # numbers inspected to detect a wrong dtype
_N_SCANNED = 1 << 16  # numbers searched for a separator in one call


@dataclasses.dataclass(frozen=True)
class SeparatedReader(Reader):
    """Documents in one long array of token ids, each ended by a separator, which belongs to it."""

    tokens: Any
    separator: int
    path: Path | None = None

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        begin = mark or 0
        for start in range(begin, len(self.tokens), _N_SCANNED):
            found = np.flatnonzero(self.tokens[start : start + _N_SCANNED] == self.separator)
            for end in (found + start + 1).tolist():
                yield TokenRow(self.tokens[begin:end].tolist()), end
                begin = end
        if begin < len(self.tokens):  # the last document may lack its separator
            yield TokenRow(self.tokens[begin:].tolist()), len(self.tokens)


def token_file_reader(path: Path, options: ReadOptions) -> tuple[Reader, Tokenized]:
    """Returns a reader of a file of token ids, and what is known about them."""
    try:
        is_array = path.suffix == ".npy"
        tokens = np.load(path, mmap_mode="r", allow_pickle=False) if is_array else _map_bin(path, options.dtype)
    except (ValueError, EOFError) as error:
        raise DataError(f"'{path}' is no NumPy array ({error}). Write it with numpy.save.") from error
    reader, tokenized = array_reader(tokens, f"'{path}'", options)
    return dataclasses.replace(reader, path=path), tokenized


def array_reader(tokens: Any, name: str, options: ReadOptions) -> tuple[SeparatedReader | MapReader, Tokenized]:
    """Returns a reader of an array of token ids, and what is known about them.

    A 2-D array holds rows. A 1-D array holds documents if there is a separator; else it is one long
    text, which is read in pieces that belong together.
    """
    if tokens.dtype.kind not in "ui" or tokens.ndim not in (1, 2):
        raise DataError(
            f"{name} holds {tokens.dtype} in {tokens.ndim} dimensions; whole numbers in one or two are needed. "
            "Save token ids, as uint16 or uint32."
        )
    if not len(tokens):
        raise DataError(f"{name} is empty. Provide token ids.")
    if tokens.ndim == 2:  # (rows, row length)
        rows = MapReader(lambda numbers: [TokenRow(tokens[n].tolist()) for n in numbers], range(len(tokens)))
        return rows, Tokenized(ctx_len=tokens.shape[1])
    if options.separator_id is not None:
        return SeparatedReader(tokens, options.separator_id), Tokenized()
    size = options.row_len
    if size < 1:
        raise ConfigError(f"Got row_len={size}; a piece must hold at least 1 token.")

    def pieces(numbers: list[int]) -> list[TokenRow]:
        return [TokenRow(tokens[n * size : (n + 1) * size].tolist(), start=n * size) for n in numbers]

    return MapReader(pieces, range(math.ceil(len(tokens) / size))), Tokenized()


def _map_bin(path: Path, dtype: str) -> Any:
    if dtype not in _DTYPES:
        raise ConfigError(f"Got dtype={dtype!r} for '{path.name}'; it must be one of {', '.join(_DTYPES)}.")
    kind, size = np.dtype(dtype), path.stat().st_size
    if size % kind.itemsize:
        raise DataError(
            f"'{path}' has {size} bytes, which is no whole number of {dtype}. Set dtype to the type that it was "
            "written with."
        )
    if not size:
        return np.empty(0, kind)
    tokens = np.memmap(path, dtype=kind, mode="r")
    if (wider := _written_as(tokens)) is not None:
        raise DataError(
            f"Most numbers of '{path}' are 0 when it is read as {dtype}, so it was written as {wider}. Set "
            f"dtype='{wider}'."
        )
    return tokens


def _written_as(tokens: Any) -> str | None:
    """Returns the wider type of a file, where the upper parts of its ids are all 0."""
    width, is_even = tokens.dtype.itemsize, len(tokens) % 2 == 0
    seen = tokens[:_N_INSPECTED]
    if width == 2 and len(tokens) > 4 and len(tokens) % 4 == 0 and not any(seen[n::4].any() for n in (1, 2, 3)):
        return "int64"
    if width == 2 and len(tokens) > 2 and is_even and not seen[1::2].any():
        return "uint32"
    if width == 4 and len(tokens) > 4 and is_even and not seen[1::2].any():
        return "int64"
    return None
