"""Where the rows of a shuffle buffer come from, so that a checkpoint can name them."""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dictionary_learning.activations._reader import Rows, RowSource
from dictionary_learning.activations._storage import RowStorage
from dictionary_learning.errors import CheckpointError
from dictionary_learning.sites import Site


class Origins:
    """For each slot the read that filled it, and the row of that read.

    A read is known by the reader's state before it, so that it can be made again: the same contexts
    in the same forward pass give the same bits.

    Args:
        size: Slots of the buffer.
    """

    def __init__(self, size: int):
        self._read, self._row = torch.full((size,), -1), torch.full((size,), -1)
        self._states: dict[int, tuple[dict[str, Any], str, int]] = {}
        self._n_reads = 0

    def add(self, slots: Int[Tensor, "n"], state: dict[str, Any], rows: Rows) -> None:
        """Notes that a read, before which the reader had a state, filled slots in their order."""
        self._read[slots], self._row[slots] = self._n_reads, torch.arange(len(slots))
        self._states[self._n_reads] = copy.deepcopy(state), _fingerprint(rows), rows.n_contexts
        self._n_reads += 1

    def compacted(self, slots: Int[Tensor, "n"]) -> "Origins":
        """Returns the origins of the rows in slots, which are then in the first slots."""
        moved = Origins(len(self._read))
        moved.load_state_dict(self.state_dict(slots))
        return moved

    def state_dict(self, slots: Int[Tensor, "n"]) -> dict[str, Any]:
        """Returns the origins of the rows in slots, and forgets all reads that have no other."""
        read = self._read[slots]
        alive = set(read.tolist())
        self._states = {number: state for number, state in self._states.items() if number in alive}
        return {
            "read": read,
            "row": self._row[slots],
            "states": [(number, copy.deepcopy(before), *what) for number, (before, *what) in self._states.items()],
            "n_reads": self._n_reads,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state, whose rows are in the first slots."""
        n = len(state["read"])
        self._read[:n], self._row[:n] = state["read"], state["row"]
        self._states = {number: (copy.deepcopy(before), digest, n) for number, before, digest, n in state["states"]}
        self._n_reads = state["n_reads"]


def read_again(reader: RowSource, origins: dict[str, Any], storages: Mapping[Site, RowStorage]) -> None:
    """Makes the reads of a state again, and writes its rows into the first slots of each storage.

    The reader is left where the last read ended.

    Raises:
        CheckpointError: The text or the model gives other rows than before.
    """
    for number, before, fingerprint, n_contexts in origins["states"]:
        slots = (origins["read"] == number).nonzero().squeeze(1)
        rows, wanted = reader.read_again(copy.deepcopy(before), n_contexts), origins["row"][slots]
        if rows is None or _fingerprint(rows) != fingerprint:
            raise CheckpointError(
                f"{reader.name} gives other tokens than those the run has read. The text, the tokenizer or the filter "
                "has changed: resume with those of the run."
            )
        for site, storage in storages.items():
            activations = rows.activations[site]
            storage.write(slots.to(storage.rows.device), activations[wanted.to(activations.device)])


def _fingerprint(rows: Rows) -> str:
    """Returns a hash of the tokens and their places in the text."""
    origin = torch.stack([rows.token, rows.document, rows.position])  # (3, n)
    return hashlib.blake2b(origin.numpy().tobytes(), digest_size=16).hexdigest()
