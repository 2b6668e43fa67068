"""The contexts that were read, on disk as they are: memory does not grow with the text."""

import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from dictionary_learning._disk import write_atomically
from dictionary_learning.data import TokenBatch

ROWS = ("token_ids", "documents", "positions")
"""What is stored of each context, row by row; -1 for padding."""


class Spool:
    """A file of contexts, to which batches are appended.

    Args:
        path: The file; what is there after the contexts that are kept is removed.
        ctx: Tokens in a context.
        n_contexts: The number of contexts that are kept.
    """

    def __init__(self, path: Path, ctx: int, n_contexts: int):
        self.path, self.ctx, self.n_contexts = path, ctx, n_contexts
        path.touch()
        self._file = open(path, "r+b")  # noqa: SIM115  (closed by `close`)
        self._file.truncate(n_contexts * self._bytes)
        self._file.seek(0, os.SEEK_END)

    def append(self, tokens: TokenBatch) -> int:
        """Appends the contexts of a batch; returns the number of the first of their tokens."""
        first = self.n_contexts * self.ctx
        unknown = torch.full_like(tokens.input_ids, -1)
        parts = [tokens.input_ids, *(unknown if p is None else p for p in (tokens.document, tokens.position))]
        block = torch.stack([torch.where(tokens.attention_mask, part, -1).cpu() for part in parts], dim=1)
        padded = torch.nn.functional.pad(block, (0, self.ctx - block.shape[2]), value=-1)  # (batch, 3, ctx)
        self._file.write(padded.to(torch.int32).numpy().tobytes())
        self.n_contexts += len(block)
        return first

    def flush(self) -> None:
        """Waits until all is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def write(self, path: Path) -> None:
        """Writes the contexts as a safetensors file, (contexts, 3, ctx)."""
        self.flush()
        mapped = np.memmap(self.path, dtype=np.int32, mode="r+", shape=(self.n_contexts, len(ROWS), self.ctx))
        contexts: Tensor = torch.from_numpy(mapped)
        write_atomically(path, lambda temporary: save_file({"contexts": contexts}, temporary))

    @property
    def _bytes(self) -> int:
        return 4 * len(ROWS) * self.ctx
