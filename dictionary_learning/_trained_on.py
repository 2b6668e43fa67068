"""What a dictionary was trained on, as its files say it, and what of that is taken on trust.

The files may be a stranger's. A model and a text that they name are read without being asked for
only if they are a name on the hub, or lie in the current folder.
"""

import dataclasses
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from dictionary_learning._secrets import HIDDEN
from dictionary_learning._shell_words import option as as_words
from dictionary_learning._text_reading import ContextReading, TextReading
from dictionary_learning.errors import ConfigError

T = TypeVar("T")
_ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w./-]+)?")
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_HARMLESS = ("revision", "name", "num_proc")
"""Arguments of `datasets.load_dataset` that choose neither files nor code."""


@runtime_checkable
class Named(Protocol):
    """A dictionary by what its files say."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...


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
    found = config.get("buffer")
    return found if isinstance(found, Mapping) else {}


def _run_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the settings of the run that read the text: of training, or of writing a cache."""
    own = config.get("run", {})  # a run on a cache read no text itself
    return own if own.get("data") else buffer_of(config).get("run", own)


def model_of(config: Mapping[str, Any]) -> TrainedModel | None:
    """Returns the language model that a dictionary's config names."""
    run = _run_of(config)
    name = run.get("model") or buffer_of(config).get("model", {}).get("name")
    return None if name is None else TrainedModel(name, run.get("revision"))


def dtype_of(config: Mapping[str, Any]) -> str | None:
    """Returns the dtype of the language model in training; None where the files do not tell."""
    found = buffer_of(config).get("model", {}).get("dtype")
    return found if found in _DTYPES else None


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


def contexts_of(config: Mapping[str, Any]) -> ContextReading | None:
    """Returns how contexts were made of the text; None where the files do not tell."""
    own = {name: value for name, value in buffer_of(config).items() if name in ("pack", "add_special_tokens")}
    # contexts of a cache were made when it was written
    run = buffer_of(config).get("run") or config.get("run", {})
    known = {field.name for field in dataclasses.fields(ContextReading)} - {"epochs"}
    if {"bos", "separator", "long_documents"} <= set(run):  # of the shell; a script may store what it likes
        own = {**{name: value for name, value in run.items() if name in known}, **own}
    return ContextReading.from_dict(own) if own else None


def filter_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the rule which tokens count."""
    saved = buffer_of(config).get("filter") or {}
    return {name: value for name, value in saved.items() if name != "norm_limits"} or None


def norm_limits_of(config: Mapping[str, Any]) -> dict[str, float]:
    """Returns the norm limits that were found in training, by site."""
    return dict((buffer_of(config).get("filter") or {}).get("norm_limits") or {})


def common(
    saved: Iterable[Named], what: str, read: Callable[[Mapping[str, Any]], T | None], advice: str = ""
) -> T | None:
    """Returns what all dictionaries that tell it agree on; None where none tells it.

    Raises:
        ConfigError: two of them differ.
    """
    told = [(one.name, value) for one in saved if (value := read(one.config)) is not None]
    for name, value in told:
        if value != told[0][1]:
            shown = f"{told[0][1]} and {value}"
            raise ConfigError(
                f"'{told[0][0]}' and '{name}' were trained with different {what} ({shown}), so one evaluation would be "
                f"wrong for one of them. Evaluate them apart. {advice}".rstrip()
            )
    return told[0][1] if told else None


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
            f"be a stranger's choice. Give {shlex.join(as_words(option, name))} if you mean it."
        )


def check_reading(reading: TextReading, option: str) -> None:
    """Checks how files ask to read a text, which names further data where it is a mixture.

    Raises:
        ConfigError: something could be a stranger's choice.
    """
    parts = list(reading.parts())
    for data, _ in parts:
        check_named("text", option, data)
    for one in (reading, *(part for _, part in parts)):
        _check_data_args(one.data_args, is_shell=option.startswith("--"))


def _check_data_args(pairs: Sequence[str], is_shell: bool) -> None:
    """Checks arguments of `datasets.load_dataset` that files give.

    Raises:
        ConfigError: one could choose files or code.
    """
    odd = [pair for pair in pairs if pair.partition("=")[0] not in _HARMLESS and not pair.endswith(HIDDEN)]
    if odd:
        again = f"--data-args {' '.join(odd)}" if is_shell else "data= as a source that is read so"
        raise ConfigError(
            f"The dictionary's files ask to read the text with {', '.join(odd)}, which may be a stranger's choice. "
            f"Give {again} if you mean it."
        )
