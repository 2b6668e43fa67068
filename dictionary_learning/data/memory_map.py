"""Token ids in a memory-mapped file: `.bin`, which is nothing but numbers, or `.npy`, which says their type and shape."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dictionary_learning.data.columns import ReadOptions
from dictionary_learning.data.document import TokenRow
from dictionary_learning.data.reading import Indexed, Mark, Reader
from dictionary_learning.data.source import Tokenized
from dictionary_learning.errors import ConfigError, DataError

_DTYPES = ("uint16", "uint32", "int32", "int64", "uint8")
_LOOKED_AT = 4096
_SCANNED_AT_ONCE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Separated(Reader):
    """Documents in one long array of token ids, each ended by a separator, which stays with it."""

    tokens: Any
    separator: int

    def read(self, mark: Mark = None, epoch: int = 0) -> Iterator[tuple[Any, Mark]]:
        """Yields the documents, with the place where the next begins."""
        begin = mark or 0
        while begin < len(self.tokens):
            end = self._end(begin)
            yield TokenRow(self.tokens[begin:end].tolist()), end
            begin = end

    def _end(self, begin: int) -> int:
        for start in range(begin, len(self.tokens), _SCANNED_AT_ONCE):
            found = np.flatnonzero(self.tokens[start : start + _SCANNED_AT_ONCE] == self.separator)
            if len(found):
                return start + int(found[0]) + 1
        return len(self.tokens)


def token_file_reader(path: Path, options: ReadOptions) -> tuple[Reader, Tokenized]:
    """Returns a reader of a file of token ids, and what is known of them.

    Raises:
        DataError: the file holds no token ids, or others than it is said to.
    """
    return array_reader(_npy(path) if path.suffix == ".npy" else _bin(path, options.dtype), f"'{path}'", options)


def array_reader(tokens: Any, where: str, options: ReadOptions) -> tuple[Reader, Tokenized]:
    """Returns a reader of an array of token ids, and what is known of them.

    An array of two dimensions holds rows; one of one dimension holds documents, if a separator ends them, or one long text, which is
    read in pieces that belong together.

    Raises:
        DataError: the array holds no token ids.
    """
    if tokens.dtype.kind not in "ui" or tokens.ndim not in (1, 2):
        raise DataError(
            f"{where} holds {tokens.dtype} in {tokens.ndim} dimensions; whole numbers in one or two are needed. "
            "Save token ids, as uint16 or uint32."
        )
    if not len(tokens):
        raise DataError(f"{where} is empty. Give token ids.")
    if tokens.ndim == 2:

        def rows(numbers: Sequence[int]) -> list[TokenRow]:
            return [TokenRow(tokens[n].tolist()) for n in numbers]

        return Indexed(rows, range(len(tokens))), Tokenized(ctx_len=tokens.shape[1])
    if options.separator_id is not None:
        return Separated(tokens, options.separator_id), Tokenized()
    size = options.row_len
    if size < 1:
        raise ConfigError(f"Got row_len={size}; a piece must hold at least 1 token.")

    def pieces(numbers: Sequence[int]) -> list[TokenRow]:
        return [TokenRow(tokens[n * size : (n + 1) * size].tolist(), start=n * size) for n in numbers]

    return Indexed(pieces, range(-(-len(tokens) // size))), Tokenized()


def _npy(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"'{path}' is no NumPy array ({error}). Write it with numpy.save.") from error


def _bin(path: Path, dtype: str) -> Any:
    if dtype not in _DTYPES:
        raise ConfigError(f"Got dtype={dtype!r} for '{path.name}'; it must be one of {', '.join(_DTYPES)}.")
    kind, size = np.dtype(dtype), path.stat().st_size
    if size % kind.itemsize:
        raise DataError(
            f"'{path}' has {size} bytes, which is no whole number of {dtype}. Set dtype to what it was written as."
        )
    if not size:
        return np.empty(0, kind)
    tokens = np.memmap(path, dtype=kind, mode="r")
    if dtype == "uint16" and len(tokens) > 2 and len(tokens) % 2 == 0 and not tokens[1:_LOOKED_AT:2].any():
        raise DataError(
            f"Every second number of '{path}' is 0 when it is read as uint16, so it was written as uint32. Set dtype='uint32'."
        )
    return tokens
