"""Options that say how data is read: the same for every command that reads some."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from dictionary_learning.config import BaseConfig
from dictionary_learning.data import Source, as_source
from dictionary_learning.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataArguments(BaseConfig):
    """How the data is read."""

    text_column: str = "text"
    """The column or key that holds the text; where there is none, input_ids, tokens or messages are taken."""
    split: str = "train"
    """The split of a data set on the hub."""
    streaming: bool = True
    """Whether a data set on the hub is read while it is downloaded."""
    data_args: tuple[str, ...] = ()
    """Further arguments of datasets.load_dataset, as name=value."""
    max_examples: int | None = None
    """Documents to take, and no more; by default all."""
    shuffle_seed: int | None = None
    """Seed of a random order of the documents; by default they come in their own."""
    token_dtype: str = "uint16"
    """What a .bin file of token ids was written as."""
    separator_id: int | None = None
    """The token id that ends each document of a .bin or .npy file."""

    def source(self, data: str) -> Source:
        """Returns the documents."""
        return self._limited(self._read(data))

    def divided(self, data: str, held_out_every: int) -> tuple[Source, Source]:
        """Returns the documents to train on, and those held out: every n-th of all, whatever the order and the number to train on are."""
        rest, held = self._read(data).hold_out(held_out_every)
        return self._limited(rest), held

    def _read(self, data: str) -> Source:
        return as_source(
            data,
            text_column=self.text_column,
            split=self.split,
            streaming=self.streaming,
            data_args=_named(self.data_args),
            dtype=self.token_dtype,
            separator_id=self.separator_id,
        )

    def _limited(self, source: Source) -> Source:
        if self.shuffle_seed is not None:
            source = source.shuffled(self.shuffle_seed)
        return source if self.max_examples is None else source.first(self.max_examples)


def data_arguments(values: Mapping[str, Any]) -> DataArguments:
    """Returns how data was read, from the settings of a run."""
    names = [field.name for field in dataclasses.fields(DataArguments)]
    return DataArguments.from_dict({name: value for name, value in values.items() if name in names})


def _named(pairs: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"Got data_args={pair!r}; give name=value, as --data-args revision=main.")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found
