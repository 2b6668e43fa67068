"""Sums over tokens, kept apart for each document, so that documents can be resampled."""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._hardware import float64

Totals: TypeAlias = Mapping[str, Tensor]
"""Sums over documents by name, each (resamples, ...); one row where nothing is resampled."""


class DocumentSums:
    """Sums of values of tokens by group of documents and by name, in float64."""

    def __init__(self) -> None:
        self.tables: dict[str, Tensor] = {}
        """Each (groups, ...)."""

    def add(self, groups: Int[Tensor, "n"] | None, values: Mapping[str, Tensor]) -> None:
        """Adds values of tokens, each (n, ...); without groups all belong to the first."""
        columns = {name: float64(value.detach()) for name, value in values.items()}
        n = len(next(iter(columns.values())))
        if not n:
            return
        if groups is None:
            rows, places = torch.zeros(1, dtype=torch.long), torch.zeros(n, dtype=torch.long)
        else:
            rows, places = groups.cpu().unique(return_inverse=True)
        # a product, as additions in parallel would give other bits each time on a GPU
        belongs = (places == torch.arange(len(rows)).unsqueeze(1)).double()  # (groups here, n)
        flat = torch.cat([column.reshape(n, -1) for column in columns.values()], dim=1)  # (n, all columns)
        sums = (belongs.to(flat.device) @ flat).split([column[0].numel() for column in columns.values()], dim=1)
        for (name, column), part in zip(columns.items(), sums, strict=True):
            self._add_rows(name, rows, part.reshape(len(rows), *column.shape[1:]))

    def merge(self, other: "DocumentSums", index: Int[Tensor, "groups"] | None = None) -> None:
        """Adds the sums of another; `index` has the group here of each group there."""
        for name, table in other.tables.items():
            self._add_rows(name, torch.arange(len(table)) if index is None else index[: len(table)], table)

    def totals(self, weights: Float[Tensor, "resamples groups"] | None = None) -> dict[str, Tensor]:
        """Returns the sums over groups, each counted as often as a resample has it; or once."""
        if weights is None:
            return {name: table.sum(0, keepdim=True).cpu() for name, table in self.tables.items()}
        found: dict[str, Tensor] = {}
        for name, table in self.tables.items():
            flat = table.cpu().reshape(len(table), -1)
            found[name] = (weights[:, : len(table)] @ flat).reshape(len(weights), *table.shape[1:])
        return found

    def _add_rows(self, name: str, rows: Int[Tensor, "m"], values: Float[Tensor, "m *rest"]) -> None:
        table = self.tables.get(name)
        height = int(rows.max()) + 1
        if table is None:
            table = values.new_zeros(height, *values.shape[1:])
        elif len(table) < height:
            table = torch.cat([table, table.new_zeros(height - len(table), *table.shape[1:])])
        # several groups of another evaluation may become one
        self.tables[name] = table.index_add(0, rows.to(table.device), values.to(table.device))
