"""Settings that are said and can have no effect, which are refused.

A setting that is only a default is not said. What the shell or a file says stands in `said`.
"""

import contextlib
import dataclasses
import glob
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dictionary_learning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dictionary_learning._text_reading import TextReading

T = TypeVar("T")

_BY_NAME, _SAVED = "read by datasets", "saved"
"""No file that is read here: a name on the hub, or a file such as .csv; and a folder of rows."""
_N_INSPECTED = 8


def saying(config: T, names: Collection[str]) -> T:
    """Returns a config that knows which of its settings were said."""
    object.__setattr__(config, "said", frozenset(names))
    return config


def asked_of(config: Any, kind: Any) -> dict[str, Any]:
    """Returns the settings of a class that were said, even if as the default, or differ from it."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = getattr(config, field.name)
        if field.name in config.said or value != field.default:
            found[field.name] = value
    return found


class _Data:
    """What is read, and in which ways; found out only where it is asked for."""

    def __init__(self, parts: "Sequence[tuple[str, TextReading]]"):
        self.parts = parts

    @cached_property
    def kinds(self) -> set[str]:
        return {kind for name, _ in self.parts for kind in _kinds_of(name)}

    @cached_property
    def has_conversations(self) -> bool:
        from dictionary_learning.data._document import Conversation

        for name, reading in self.parts:
            with contextlib.suppress(DataError):  # which is raised when the data are read
                first = islice(reading.read(name).reader.read(), _N_INSPECTED)
                if any(isinstance(document, Conversation) for document, _ in first):
                    return True
        return False


_NEEDS: tuple[tuple[tuple[str, ...], Callable[[_Data], bool], str], ...] = (
    (("mix_seed", "exhausted"), lambda data: len(data.parts) > 1, "without --mix, which it is about"),
    (
        ("shuffle_buffer",),
        lambda data: data.parts[0][1].shuffle_seed is not None,
        "without --shuffle-seed, and documents keep their order",
    ),
    (("token_dtype",), lambda data: ".bin" in data.kinds, "and no .bin file is read, whose type it is"),
    (
        ("separator_id", "row_len"),
        lambda data: bool(data.kinds & {".bin", ".npy"}),
        "and no .bin or .npy file is read, which it is about",
    ),
    (("streaming",), lambda data: _BY_NAME in data.kinds, "and no data set on the hub is read, which it is about"),
    (
        ("removal_frequency", "chat_seed"),
        lambda data: any(reading.system_prompt for _, reading in data.parts),
        "without --system-prompt, which is what is taken out",
    ),
    (
        ("chat_template", "system_prompt"),
        lambda data: data.has_conversations,
        "and the data hold no conversations, which it is about",
    ),
)
"""Settings, what they need, and what is said where they do not find it."""


def check_reading_said(reading: "TextReading", data: str, said: Collection[str]) -> None:
    """Checks how a text is read.

    Raises:
        ConfigError: A setting was said, and can have no effect on these data.
    """
    parts = list(reading.parts())
    _check(_Data([(data, reading), *parts]), said, lambda name: f"--{name.replace('_', '-')}")
    for name, part in parts:
        _check(_Data([(name, part)]), part.said, lambda setting, name=name: f"'{setting}' for '{name}' in mix")


def _check(data: _Data, said: Collection[str], shown: Callable[[str], str]) -> None:
    for names, holds, why in _NEEDS:
        if (name := next((name for name in names if name in said), None)) and not holds(data):
            raise ConfigError(f"Got {shown(name)} {why}. Leave it out.")


def check_contexts_said(reading: Any, text: Any, said: Collection[str]) -> None:
    """Checks how contexts are made of a text, by a `ContextReading`.

    Raises:
        ConfigError: A setting was said, and can have no effect on this text.
    """
    if reading.pack and (name := next((name for name in ("long_documents", "padding_side") if name in said), None)):
        raise ConfigError(
            f"Got --{name.replace('_', '-')} with packed contexts, which are full. Give --pack false too, or leave it "
            "out."
        )
    name = next((name for name in ("rows", "vocab_size") if name in said), None)
    if name and getattr(text, "tokenized", None) is None:
        raise ConfigError(
            f"Got --{name.replace('_', '-')}, and the data hold no token ids, which it is about. Leave it out."
        )


def _kinds_of(name: str) -> set[str]:
    """Returns the suffixes of the files that a name means; or that it is no file."""
    from dictionary_learning.data._files import kind_of

    path = Path(name).expanduser()
    if path.is_dir():
        if any((path / mark).is_file() for mark in ("dataset_info.json", "dataset_dict.json")):
            return {_SAVED}
        return {kind for file in path.rglob("*") if (kind := kind_of(file))}
    if glob.has_magic(name) and not path.exists():
        return {kind for file in glob.iglob(str(path), recursive=True) if (kind := kind_of(Path(file)))}
    return {kind_of(path) or _BY_NAME}
