"""Formats of checkpoints, and how the format of a checkpoint is recognized.

All functions raise a CheckpointError where a checkpoint, a fact or a name does not fit.
"""

import logging
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dictionary_learning.config import Registry
from dictionary_learning.dictionaries import Coder, Dictionary
from dictionary_learning.dictionaries._trainable import has_own_method
from dictionary_learning.dictionaries._wrapper import innermost
from dictionary_learning.errors import CheckpointError, UnknownNameError
from dictionary_learning.interop._archives import read_names
from dictionary_learning.interop._files import Files, shorten

logger = logging.getLogger(__name__)

Facts = Mapping[str, Any]
"""Facts about a checkpoint that its files do not hold, by name."""
PLAIN = (str, int, float, type(None))
"""Values of settings that JSON can hold."""


class Loaded(NamedTuple):
    """What a format reads from a checkpoint."""

    dictionary: Dictionary
    config: dict[str, Any]
    """What is known about the dictionary; see `DictionaryInfo.config`."""


class Format(ABC):
    """How one kind of file is recognized, read and written."""

    name: str
    """The name for `format=` and `--to`."""
    facts: tuple[str, ...] = ()
    """Facts that a caller may add."""
    needed: tuple[str, ...] = ()
    """Patterns of the files that are read, relative to the folder."""
    writes: bool = False
    """Whether dictionaries can be written in this format."""
    file_names: re.Pattern[str] | None = None
    """Names of files that are one dictionary together, as those of layers; None for one file."""

    def recognizes(self, files: Files) -> bool:
        """Returns whether files are of this format, and by names and keys of no other."""
        return files.wants(self.needed[0])

    @abstractmethod
    def read(self, files: Files, facts: Facts) -> Loaded:
        """Returns the dictionary in a folder."""

    def write(self, dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
        """Writes a dictionary into an existing folder; formats with `writes` implement it."""
        raise NotImplementedError

    def check(self, dictionary: Dictionary) -> None:
        """Refuses a dictionary before it is trained, if it cannot be written."""
        if self.name != "own" and (reason := own_part(dictionary)):
            raise CheckpointError(
                f"{type(dictionary).__name__} is a class of yours with {reason}, which {self.name} has no place for. "
                "Write it as own or dictionary_learning, or write what it inherits, a dictionary of its base class."
            )

    def write_step(self, dictionary: Dictionary, folder: Path, step: int, config: Mapping[str, Any]) -> None:
        """Writes a dictionary as it was after a step, in the folder of its trainer."""
        place = folder / "checkpoints" / f"step_{step}"
        place.mkdir(parents=True, exist_ok=True)
        self.write(dictionary, place, config)

    def known(
        self, where: object, peer: Mapping[str, Any], names: Mapping[str, Any] | None = None, **keys: str
    ) -> dict[str, Any]:
        """Returns a config of what is known.

        Args:
            where: the place of the files, for errors.
            peer: the settings of the other package as they stand in its files.
            names: where the keys below are looked up; `peer` by default.
            keys: the key there of each of our sections: model, site, target_site.
        """
        said = peer if names is None else names
        values = {section: label(said, key, where) for section, key in keys.items()}
        texts = {section: value for section, value in values.items() if value is not None}
        return {"format": self.name, "peer": dict(peer), **texts}


def own_part(dictionary: Dictionary) -> str:
    """Returns what a user's class has that its base in this package has not; empty for nothing."""
    dictionary = innermost(dictionary)
    cls: Any = type(dictionary)
    for name in ("encode", "decode", "forward"):
        if has_own_method(cls, name, *((f"{name}_dense",) if name != "forward" else ())):
            return f"its own {name}"
    base = next((c for c in cls.__mro__ if c.__module__.partition(".")[0] == __name__.partition(".")[0]), cls)
    if base is cls or not isinstance(dictionary, Coder):
        return ""
    named = {"W_enc", "W_dec", "b_enc", "b_dec", "W_skip"}
    further = [name for name in dictionary.state_dict() if name not in named and not name.startswith("nonlinearity.")]
    return f"tensors of its own ({', '.join(further)})" if further else ""


FORMATS: Registry[Format] = Registry("format")


def writable_format(name: str) -> Format:
    """Returns a format that dictionaries can be written in."""
    writable = [other for other, entry in FORMATS.items() if entry.writes]
    if name not in FORMATS:
        raise CheckpointError(str(UnknownNameError("format to write", name, writable)))
    if not FORMATS[name].writes:
        raise CheckpointError(
            f"Dictionaries are read as {name}, and not written. Choose one of: {', '.join(writable)}."
        )
    return FORMATS[name]


def format_of(files: Files, name: str | None = None) -> Format:
    """Returns the named format, or the only one that recognizes the files."""
    if name is not None:
        return _format_named(name)
    found = [known for _, known in FORMATS.items() if known.recognizes(files)]
    if len(found) == 1:
        return found[0]
    advice = f"Give the folder with the weights and their config, or say the format by format=: {', '.join(FORMATS)}."
    if found:
        raise CheckpointError(
            f"'{files}' may be any of {', '.join(known.name for known in found)}, which compute different "
            f"things.{files.listing()} {advice}"
        )
    held = files.listing()
    if files.chosen is not None and files.chosen.endswith((".pt", ".pth", ".safetensors")):
        held = f" It holds: {shorten(sorted(read_names(files, files.chosen))) or 'nothing by name'}."
    raise CheckpointError(f"'{files}' is no dictionary of a known format.{held} {advice}")


def setting(config: Mapping[str, Any], name: str, kind: type, default: Any, where: object) -> Any:
    """Returns a setting of a config, checked to be of a type."""
    value = config.get(name, default)
    if value is default:
        return value
    # JSON writes 1.0 as 1; bool is an int in Python, but no number in a config
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else value
    is_odd = isinstance(value, float) and not math.isfinite(value)
    if not isinstance(value, kind) or is_odd or (kind is not bool and isinstance(value, bool)):
        raise CheckpointError(f"The config of '{where}' says {name}={value!r}; a {kind.__name__} is needed.")
    return value


def label(config: Mapping[str, Any], name: str, where: object) -> str | None:
    """Returns a setting that names a model or a site; None if it is not said."""
    value = config.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise CheckpointError(f"The config of '{where}' says {name}={value!r}; a name is needed, or null for none.")
    return value


def whole_number(config: Mapping[str, Any], name: str, where: object) -> int | None:
    """Returns a setting that counts something, also if it was written as 64.0; None if not said."""
    value = config.get(name)
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return setting({name: value}, name, int, None, where)


def choice(config: Mapping[str, Any], name: str, known: Collection[str], default: str | None, where: object) -> str:
    """Returns a setting of a config, checked to be one of some words."""
    value = config.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise CheckpointError(f"The config of '{where}' says {name}={value!r}; known are: {', '.join(known)}.")
    return value


def warn_unknown(config: Mapping[str, Any], known: Collection[str], where: object) -> None:
    """Warns of settings that a format does not have."""
    unknown = sorted(config.keys() - set(known))
    if unknown:
        said = "The config of '%s' has fields that are not known here, and are not read: %s."
        logger.warning(said, where, ", ".join(unknown))


def check_fact(facts: Facts, name: str, found: Any, where: object) -> None:
    """Checks that a fact that a caller adds is not another than what files say."""
    if name in facts and found is not None and facts[name] != found:
        raise CheckpointError(
            f"Got {name}={facts[name]!r}, and '{where}' says {name}={found!r}. Leave {name} out, or give another file."
        )


def latents_kept(settings: Mapping[str, Any], where: object, add: str = "Get the whole file.") -> int:
    """Returns the setting k, which there has to be; `add` says how to add a missing one."""
    k = whole_number(settings, "k", where)
    if k is None:
        raise CheckpointError(f"'{where}' does not say how many latents are kept: k is needed. {add}")
    return k


def positive(value: Any, name: str, where: object) -> float:
    """Returns a factor, checked to be a positive finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 1e-30 < value < 1e30:
        raise CheckpointError(f"'{where}' has {name}={value!r}; a positive number is needed.")
    return float(value)


def _format_named(name: str) -> Format:
    try:
        return FORMATS[name]
    except UnknownNameError as error:
        raise CheckpointError(str(error)) from error
