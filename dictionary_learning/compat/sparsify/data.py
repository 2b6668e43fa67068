"""Data of sparsify: text in chunks, and token ids in a file."""

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dictionary_learning.compat._generators import chunk_and_tokenize as chunk_and_tokenize
from dictionary_learning.errors import DataError


class MemmapDataset:
    """Contexts of token ids in a file of raw numbers, which is mapped into memory.

    Args:
        data_path: The file.
        ctx_len: Tokens in a context; a rest is left out.
        max_examples: The number of contexts, from the first; None for all.
        dtype: The type of the numbers. `numpy.uint16` holds vocabularies up to 65,536 tokens.
    """

    def __init__(
        self, data_path: str | os.PathLike[str], ctx_len: int, max_examples: int | None = None, dtype: Any = np.uint16
    ):
        try:
            ids = np.memmap(data_path, dtype=dtype, mode="r")
        except (OSError, ValueError) as error:
            raise DataError(
                f"'{data_path}' cannot be read as {np.dtype(dtype)}: {error}. Give a file of ids."
            ) from error
        n = len(ids) // ctx_len if max_examples is None else min(max_examples, len(ids) // ctx_len)
        if not n:
            raise DataError(f"'{data_path}' holds {len(ids)} ids, fewer than ctx_len={ctx_len}. Lower ctx_len.")
        self._rows = ids[: n * ctx_len].reshape(n, ctx_len)

    @property
    def rows(self) -> Any:
        """The contexts as an array (n, ctx_len), which stays in the file."""
        return self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        return {"input_ids": torch.from_numpy(np.asarray(self._rows[index]).astype(np.int64))}

    def select(self, rows: Any) -> "MemmapDataset":
        """Returns some of the contexts, in their order; those of a range without a copy."""
        if isinstance(rows, range) and rows and rows.step > 0 and rows[0] >= 0 and rows[-1] < len(self):
            return self._of(self._rows[rows[0] : rows[-1] + 1 : rows.step])
        return self._of(self._rows[np.asarray(list(rows), dtype=np.int64)])

    def shard(self, num_shards: int, shard_id: int) -> "MemmapDataset":
        """Returns one of several equal parts, which follow each other."""
        size = len(self._rows) // num_shards
        return self._of(self._rows[shard_id * size : (shard_id + 1) * size])

    def _of(self, rows: Any) -> "MemmapDataset":
        part = object.__new__(type(self))
        part._rows = rows
        return part
