"""What a dictionary was trained on, as its files say it, and what of that is taken on trust.

The files may be a stranger's. A model and a text that they name are read without being asked for
only if they are a name on the hub, or lie in the current folder.
"""

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dictionary_learning._secrets import HIDDEN
from dictionary_learning.config import BaseConfig
from dictionary_learning.errors import ConfigError

if TYPE_CHECKING:
    from dictionary_learning.data import Source

_ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w./-]+)?")
_HARMLESS = ("revision", "name", "num_proc")
"""Arguments of `datasets.load_dataset` that choose neither files nor code."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextReading(BaseConfig):
    """How the text of a run is read."""

    text_column: str = "text"
    """The column or key of the text; data without it may have input_ids, tokens or messages."""
    split: str = "train"
    """The split of a data set on the hub."""
    streaming: bool = True
    """Whether a data set on the hub is read while it is downloaded."""
    data_args: tuple[str, ...] = ()
    """Further arguments of datasets.load_dataset, as name=value."""
    max_examples: int | None = None
    """The most documents to read; by default all."""
    shuffle_seed: int | None = None
    """Seed of a random order of the documents; by default their own order."""
    token_dtype: Literal["uint16", "uint32", "int32", "int64", "uint8"] = "uint16"
    """The type of the token ids in a .bin file."""
    separator_id: int | None = None
    """The token id that ends each document of a .bin or .npy file."""
    on_bad_document: Literal["error", "skip"] = "error"
    """What happens at a record without text: an error names it, or it is skipped and counted."""
    chat_template: str | None = None
    """A Jinja template that renders conversations, instead of the tokenizer's own."""

    def source(self, data: str) -> "Source":
        """Returns the documents."""
        return self._limited(self._read(data))

    def divided(self, data: str, held_out_every: int) -> "tuple[Source, Source]":
        """Returns the documents to train on, and every n-th of all, which are held out."""
        rest, held = self._read(data).hold_out(held_out_every)
        return self._limited(rest), held

    def _read(self, data: str) -> "Source":
        from dictionary_learning.data import Chat, as_source

        return as_source(
            data,
            chat=None if self.chat_template is None else Chat(template=self.chat_template),
            data_args=_named(self.data_args),
            dtype=self.token_dtype,
            text_column=self.text_column,
            split=self.split,
            streaming=self.streaming,
            separator_id=self.separator_id,
            on_bad_document=self.on_bad_document,
        )

    def _limited(self, source: "Source") -> "Source":
        if self.shuffle_seed is not None:
            source = source.shuffled(self.shuffle_seed)
        return source if self.max_examples is None else source.first(self.max_examples)


class TrainedText(NamedTuple):
    """The text that a run trained on, and how it was read."""

    data: str | None
    reading: TextReading
    held_out_every: int | None

    def __str__(self) -> str:
        default = TextReading().to_dict()
        settings = {**self.reading.to_dict(), "held_out_every": self.held_out_every}
        changed = [f"{name}={value}" for name, value in settings.items() if value != default.get(name)]
        return f"'{self.data}' with {', '.join(changed) or 'defaults'}"


class TrainedModel(NamedTuple):
    """The language model that a run trained on."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        return f"'{self.name}'" + (f" at {self.revision}" if self.revision else "")


def buffer_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what a dictionary's config says of the activations."""
    return config.get("buffer", {})


def _run_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the settings of the run that read the text: of training, or of writing a cache."""
    own = config.get("run", {})  # a run on a cache read no text itself
    return own if own.get("data") else buffer_of(config).get("run", own)


def model_of(config: Mapping[str, Any]) -> TrainedModel | None:
    """Returns the language model that a dictionary's config names."""
    run = _run_of(config)
    name = run.get("model") or buffer_of(config).get("model", {}).get("name")
    return None if name is None else TrainedModel(name, run.get("revision"))


def text_of(config: Mapping[str, Any]) -> TrainedText | None:
    """Returns the text that a dictionary's config names; None where Python objects were read."""
    run = _run_of(config)
    return TrainedText(run["data"], reading_of(run), run.get("held_out_every")) if run.get("data") else None


def reading_of(values: Mapping[str, Any]) -> TextReading:
    """Returns how text was read, from the settings of a run."""
    known = {field.name for field in dataclasses.fields(TextReading)}
    return TextReading.from_dict({name: value for name, value in values.items() if name in known})


def held_out_of(config: Mapping[str, Any]) -> TrainedText | None:
    """Returns what decides which documents are held out: neither order nor number of those read."""
    text = text_of(config)
    return text and text._replace(reading=text.reading.replace(shuffle_seed=None, max_examples=None))


def filter_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the rule which tokens count."""
    rule = {name: value for name, value in buffer_of(config).get("filter", {}).items() if name != "norm_limits"}
    return rule or None


def check_named(what: str, option: str, name: Any) -> None:
    """Checks a name that files give to a model or a text.

    Raises:
        ConfigError: it is neither on the hub nor in the current folder.
    """
    from dictionary_learning.data._files import kind_of

    path = Path(str(name)).expanduser()
    is_here = "\0" not in str(name) and path.resolve().is_relative_to(Path.cwd().resolve())
    is_known = path.exists() or kind_of(path) is not None or _ON_THE_HUB.fullmatch(str(name))
    if not is_here or not is_known or "://" in str(name) or "::" in str(name):
        raise ConfigError(
            f"The dictionary's files name the {what} {name!r}, which is neither on the hub nor in this folder, and may "
            f"be a stranger's choice. Give {option} {shlex.quote(str(name))} if you mean it."
        )


def check_data_args(pairs: Sequence[str]) -> None:
    """Checks arguments of `datasets.load_dataset` that files give.

    Raises:
        ConfigError: one could choose files or code.
    """
    odd = [pair for pair in pairs if pair.partition("=")[0] not in _HARMLESS and not pair.endswith(HIDDEN)]
    if odd:
        raise ConfigError(
            f"The dictionary's files ask to read the text with {', '.join(odd)}, which may be a stranger's choice. "
            f"Give --data-args {' '.join(odd)} if you mean it."
        )


def _named(pairs: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in (pair for pair in pairs if not pair.endswith(HIDDEN)):  # a token of the run that was not stored
        name, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"Got data_args={pair!r}; give name=value, as --data-args revision=main.")
        try:
            found[name] = json.loads(value)  # numbers and booleans; anything else is a string
        except json.JSONDecodeError:
            found[name] = value
    return found
