"""What a format is, and how the one that a checkpoint is of is found."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from dictionary_learning.config import Registry
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import CheckpointError, UnknownNameError
from dictionary_learning.interop.files import Files


class Loaded(NamedTuple):
    """What a format reads from a checkpoint."""

    dictionary: Dictionary
    config: dict[str, Any]
    """What is known of it: of other packages' files "format", "peer" (their settings as they stand), "model" and "site" if given."""


Facts = Mapping[str, Any]
"""What the caller says of a checkpoint that its files do not."""


class Format(ABC):
    """How one kind of file is recognized, read and written."""

    name: ClassVar[str]
    """As `format=` and `--to` name it."""
    about: ClassVar[str]
    """Whose it is, in one line."""
    facts: ClassVar[tuple[str, ...]] = ()
    """What a caller may say of a checkpoint that its files do not."""
    needed: ClassVar[tuple[str, ...]] = ()
    """Patterns of the files that are read, as the hub takes them; they are looked for in the folder itself."""
    writes: ClassVar[bool] = False
    """Whether dictionaries can be written so."""

    @abstractmethod
    def recognizes(self, files: Files) -> bool:
        """Returns whether files are of this format and, as far as names and keys can tell, of no other."""

    @abstractmethod
    def read(self, files: Files, facts: Facts) -> Loaded:
        """Returns the dictionary in a folder.

        Raises:
            CheckpointError: the files are damaged, or do not fit each other.
        """

    def write(self, dictionary: Dictionary, folder: Path, config: Mapping[str, Any]) -> None:
        """Writes a dictionary into a folder that exists.

        Args:
            dictionary: what to write; it is not changed.
            folder: the folder.
            config: what is known of it, as reading gives it.

        Raises:
            CheckpointError: the format cannot express the dictionary; the message says why. Nothing has been written then.
        """
        writable = ", ".join(name for name in FORMATS if FORMATS[name].writes)
        raise CheckpointError(f"Dictionaries are not written as {self.name}. Choose one of: {writable}.")


FORMATS: Registry[Format] = Registry("format")


def format_of(files: Files, name: str | None = None) -> Format:
    """Returns the format of a checkpoint: the one named, or the only one that recognizes it.

    Raises:
        CheckpointError: none does, or several do.
    """
    if name is not None:
        try:
            return FORMATS[name]
        except UnknownNameError as error:
            raise CheckpointError(str(error)) from error
    found = [known for name, known in FORMATS.items() if known.recognizes(files)]
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"'{files}' may be any of {', '.join(known.name for known in found)}, which differ in what they compute. It holds: "
            f"{files.listing()}. Say which by format=."
        )
    raise CheckpointError(
        f"'{files}' is no dictionary of a format that is known. It holds: {files.listing()}. Give the folder with the weights and their "
        f"config, or say the format: {', '.join(FORMATS)}."
    )


def check_facts(known: Format, facts: Facts) -> None:
    """Checks that what the caller says means something to the format.

    Raises:
        CheckpointError: it does not.
    """
    for name in facts:
        if name not in known.facts:
            takes = f"it takes: {', '.join(known.facts)}" if known.facts else "it takes none"
            raise CheckpointError(f"The format {known.name} has no use for {name}={facts[name]!r}; {takes}.")


def setting(config: Mapping[str, Any], name: str, kind: type, default: Any, where: object) -> Any:
    """Returns a setting of a config, of the type that is needed.

    Raises:
        CheckpointError: it has another.
    """
    value = config.get(name, default)
    if value is default:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else value
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise CheckpointError(f"The config of '{where}' says {name}={value!r}; a {kind.__name__} is needed.")
    return value


def choice(config: Mapping[str, Any], name: str, known: Collection[str], default: str | None, where: object) -> str:
    """Returns a setting of a config that is one of some words.

    Raises:
        CheckpointError: it is none of them.
    """
    value = config.get(name, default)
    if not isinstance(value, str) or value not in known:
        raise CheckpointError(f"The config of '{where}' says {name}={value!r}; known are: {', '.join(known)}.")
    return value


def positive(value: Any, name: str, where: object) -> float:
    """Returns a number that something is multiplied or divided by.

    Raises:
        CheckpointError: it is no positive finite number.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 1e-30 < value < 1e30:
        raise CheckpointError(f"'{where}' has {name}={value!r}; a positive number is needed.")
    return float(value)
