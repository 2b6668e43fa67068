"""Contexts of latents on disk. Opening reads one small file, and a latent reads only its rows.

    index.json                  what was asked for, the dictionaries, and the files with checksums
    contexts.safetensors        (contexts, 3, ctx): token ids, documents, positions; -1 for padding
    tokens.json                 the piece of each token id, as `_token_text` explains it
    0/statistics.safetensors    of the first dictionary, of all latents
    0/latents_00000.safetensors examples of its first latents, by the numbers of their tokens

The number of a token is context * ctx + column.
"""

import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning.errors import ConfigError, UnknownNameError
from dictionary_learning.interpretation._index import (
    CONTEXTS,
    STATISTICS,
    TOKENS,
    check_files,
    check_size,
    damaged,
    read_index,
    read_tensors,
    shard_name,
)
from dictionary_learning.interpretation._records import Example, LatentContexts, LatentStatistics
from dictionary_learning.interpretation._token_text import texts_alone, texts_together
from dictionary_learning.interpretation._token_views import TokenView, show_rows

_STATISTICS = ("density", "mean", "maximum", "histogram", "upper")
_EXAMPLES = ("top_tokens", "top_activations", "quantile_tokens", "quantile_activations", "quiet_tokens")


class ContextStore:
    """Contexts of the latents of several dictionaries, in a folder that `collect_contexts` wrote.

    `store[name]` is a `DictionaryContexts`; iterating gives their names.
    """

    def __init__(self, folder: Path, index: dict[str, Any]):
        self.folder, self.index = folder, index
        entries = {entry["name"]: entry for entry in index["dictionaries"]}
        self._dictionaries = {name: DictionaryContexts(self, entry) for name, entry in entries.items()}

    @classmethod
    @checked()
    def open(cls, path: str | os.PathLike[str]) -> "ContextStore":
        """Opens a folder; nothing but its index is read.

        Raises:
            DataError: It holds no complete store, a damaged one, or one of a later version.
        """
        return cls(Path(path), read_index(Path(path)))

    def verify(self) -> None:
        """Compares every file with its checksum.

        Raises:
            DataError: One is missing or damaged.
        """
        check_files(self.folder, self.index)

    @property
    def names(self) -> list[str]:
        """The names of the dictionaries."""
        return list(self._dictionaries)

    @property
    def model(self) -> dict[str, Any]:
        """The language model: its name, revision and dtype."""
        return self.index["request"]["model"]

    @property
    def data(self) -> dict[str, Any]:
        """The text: its name, how it was cut into contexts, and how many tokens were read."""
        return {**self.index["request"]["data"], "n_tokens_read": self.index["n_tokens_read"]}

    def __getitem__(self, name: str) -> "DictionaryContexts":
        if name not in self._dictionaries:
            raise UnknownNameError("dictionary", str(name), self._dictionaries)
        return self._dictionaries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dictionaries)

    def __len__(self) -> int:
        return len(self._dictionaries)

    def __contains__(self, name: object) -> bool:
        return name in self._dictionaries

    def token_text(self, ids: Int[Tensor, "*n"] | Iterable[int]) -> list[str]:
        """Returns the text of each token by itself, with the space before it; no model is needed.

        A byte that is no whole character is shown as <0xE4>.
        """
        return texts_alone(self._pieces_of(ids))

    def window_text(self, ids: Int[Tensor, "window"] | Iterable[int]) -> list[str]:
        """Returns the text of each token of a window, such as `example.token_ids`.

        A character that is split over tokens is the text of the last one; the others have none.
        """
        return texts_together(self._pieces_of(ids))

    def _pieces_of(self, ids: Tensor | Iterable[int]) -> list[str]:
        pieces = self._pieces
        numbers: list[int] = ids.flatten().tolist() if isinstance(ids, Tensor) else [int(i) for i in ids]
        return [pieces[i] if 0 <= i < len(pieces) else str(i) for i in numbers]

    @functools.cached_property
    def _pieces(self) -> list[str]:
        path = self.folder / TOKENS
        check_size(self.folder, TOKENS, self.index)
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise damaged(path, error) from error
        if found is None:
            return []  # there was no tokenizer
        if not isinstance(found, list) or not all(isinstance(piece, str) for piece in cast("list[Any]", found)):
            raise damaged(path, "it is no list of texts")
        return cast("list[str]", found)

    @functools.cached_property
    def contexts(self) -> Int[Tensor, "contexts 3 ctx"]:
        """All contexts that were read: token ids, documents and positions; mapped, not loaded."""
        found = read_tensors(self.folder, CONTEXTS, self.index, ("contexts",))["contexts"]
        shape = (self.index["n_contexts"], 3, self.index["ctx_len"])
        if tuple(found.shape) != shape:
            raise damaged(self.folder / CONTEXTS, f"its shape is {tuple(found.shape)}, and {shape} was written")
        return found

    def examples(self, tokens: Int[Tensor, "n"], activations: Tensor) -> list[Example | None]:
        """Returns the windows around tokens, by their numbers; None for a number below 0."""
        before, after = self.index["window"]
        ctx = self.index["ctx_len"]
        at, columns = tokens.clamp_min(0) // ctx, tokens.clamp_min(0) % ctx
        if len(at) and int(at.max()) >= len(self.contexts):
            raise damaged(self.folder, f"an example is of context {int(at.max())} of {len(self.contexts)}")
        rows = self.contexts[at]  # (n, 3, ctx)
        ids, is_padded = rows[:, 0].long(), bool((rows[:, 0] < 0).any())
        _, documents, positions = rows[torch.arange(len(at)), :, columns].unbind(1)
        found: list[Example | None] = []
        places = zip(tokens.tolist(), columns.tolist(), documents.tolist(), positions.tolist(), strict=True)
        for n, (token, column, document, position) in enumerate(places):
            if token < 0:
                found.append(None)
                continue
            start, end = max(column - before, 0), min(column + after + 1, ctx)
            window, peak = ids[n, start:end], column - start
            values = activations[n, start - column + before : end - column + before]
            if is_padded:
                real = window >= 0
                window, values, peak = window[real], values[real], int(real[:peak].sum())
            found.append(Example(window, values, peak, document, position))
        return found


class DictionaryContexts:
    """Contexts of the latents of one dictionary; iterating gives those of each latent in turn."""

    def __init__(self, store: ContextStore, entry: dict[str, Any]):
        self.store, self.facts = store, entry
        self.name: str = entry["name"]
        self.dict_size: int = entry["dict_size"]
        self.activation_dim: int = entry["activation_dim"]
        self.class_name: str = entry["class"]
        self.sites: tuple[str, ...] = tuple(entry["sites"])
        self._shards: dict[int, dict[str, Tensor]] = {}

    @property
    def site(self) -> str:
        """The site that it reads; of several, their names with commas."""
        return ", ".join(self.sites)

    @functools.cached_property
    def statistics(self) -> LatentStatistics:
        """How often and how strongly each latent is active, exactly."""
        return LatentStatistics(n_tokens=self.facts["n_tokens"], **self._read(STATISTICS, _STATISTICS))

    @checked()
    def contexts(self, latent: int) -> LatentContexts:
        """Returns where a latent is active, and where it is not; reads its rows alone.

        Raises:
            ConfigError: There is no such latent.
        """
        if not 0 <= latent < self.dict_size:
            raise ConfigError(f"Got latent {latent!r}; '{self.name}' has latents 0 to {self.dict_size - 1}. Give one.")
        number, row = divmod(latent, self.store.index["shard_size"])
        shard = {name: tensor[row] for name, tensor in self._shard(number).items()}
        n_groups = self.store.index["request"]["n_quantiles"]
        sampled, quiet = shard["quantile_activations"], shard["quiet_tokens"]
        tokens = torch.cat([shard["top_tokens"], shard["quantile_tokens"].flatten(), quiet])
        width = sampled.shape[-1]
        activations = torch.cat(
            [shard["top_activations"], sampled.view(-1, width), sampled.new_zeros(len(quiet), width)]
        )
        found = iter(self.store.examples(tokens, activations))  # at once, which is faster
        sizes = [len(shard["top_tokens"]), *[shard["quantile_tokens"].numel() // n_groups] * n_groups, len(quiet)]
        top, *groups, calm = (tuple(one for one in itertools.islice(found, n) if one is not None) for n in sizes)
        return LatentContexts(top, tuple(groups), calm)

    @checked()
    def show(self, latent: int, n: int = 8) -> TokenView:
        """Returns a view of the n contexts where a latent is most active.

        Raises:
            ConfigError: There is no such latent, or n is below 1.
        """
        if n < 1:
            raise ConfigError(f"Got n={n}; give at least 1.")
        top = self.contexts(latent).top[:n]
        rows = [(self.window_text(one.token_ids), one.activations.tolist()) for one in top]
        share = 100 * float(self.statistics.density[latent])
        return show_rows(rows, f"Latent {latent} of {self.name}, active on {share:.3g} % of tokens")

    def token_text(self, ids: Int[Tensor, "*n"] | Iterable[int]) -> list[str]:
        """Returns the text of each token by itself."""
        return self.store.token_text(ids)

    def window_text(self, ids: Int[Tensor, "window"] | Iterable[int]) -> list[str]:
        """Returns the text of each token of a window."""
        return self.store.window_text(ids)

    def __len__(self) -> int:
        return self.dict_size

    def __iter__(self) -> Iterator[LatentContexts]:
        return (self.contexts(latent) for latent in range(self.dict_size))

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._shards:
            self._shards[number] = self._read(shard_name(number), _EXAMPLES)  # rows are read when used
        return self._shards[number]

    def _read(self, file: str, wanted: tuple[str, ...]) -> dict[str, Tensor]:
        return read_tensors(self.store.folder, f"{self.facts['folder']}/{file}", self.store.index, wanted)
