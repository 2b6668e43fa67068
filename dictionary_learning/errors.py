"""Every exception of the package. A message says what was got, what is needed, what to do."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dictionary_learning._secrets import without_secrets


class DictionaryLearningError(Exception):
    """Any error raised on purpose by this package."""

    def __init__(self, *parts: object):
        super().__init__(*(without_secrets(part) if isinstance(part, str) else part for part in parts))


class ConfigError(DictionaryLearningError, ValueError):
    """A setting, or a combination of settings, cannot be used."""


class UnknownNameError(ConfigError):
    """A name is not among those known; the message lists the near ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = sorted(known)  # also a generator: it is read twice
        super().__init__(f"Unknown {kind} '{name}'.{did_you_mean(name, known)} Known: {', '.join(known) or 'none'}.")


class SiteError(DictionaryLearningError, ValueError):
    """A site is malformed, or is not in the model."""


class ModelError(DictionaryLearningError):
    """A language model cannot be loaded, wrapped or traced."""


class DataError(DictionaryLearningError):
    """Text, tokens or activations cannot be read or do not fit."""


class DataExhaustedError(DataError):
    """The data ended, and `end_of_data="error"` asked to be told."""


class DivergenceError(DataError):
    """Training ended in weights that are not finite, or made no step.

    `dictionaries` are those that came out well.
    """

    def __init__(self, message: str, dictionaries: Sequence[Any]):
        super().__init__(message)
        self.dictionaries = list(dictionaries)


class CheckpointError(DictionaryLearningError):
    """A saved dictionary is missing, damaged or from another format, or cannot be written."""


class RankError(DictionaryLearningError):
    """A process of a run on several has ended, does not answer, or has another idea of the run."""


class MissingDependencyError(DictionaryLearningError, ImportError):
    """An optional package is needed for what was asked."""

    def __init__(self, package: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. Install it with: pip install {package}"
        )


class NoCounterpartError(DictionaryLearningError, ImportError):
    """A name of another package that has no counterpart here; the message says what to use."""

    def __init__(self, name: str, package: str, instead: str):
        super().__init__(f"{name} of {package} has no counterpart here (docs/migrating.md). {instead}.")


def check_own(what: str, settings: Mapping[str, tuple[Any, Any, Any]]) -> None:
    """Checks that nobody asks for other settings than data or a model has already.

    Args:
        what: What has them, in errors.
        settings: By name, the value that was given, the default, and what it has; a default counts
            as not given.

    Raises:
        ConfigError: One differs, and would be ignored.
    """
    for name, (given, default, own) in settings.items():
        if given != default and given != own:
            has = "has settings of its own" if own is None else f"has {name}={own!r}"
            raise ConfigError(f"Got {name}={given!r}, and {what} {has}. Leave {name} out, or set it there.")


_ELSEWHERE = {
    "learningrate": "lr",
    "dsae": "dictsize",
    "numlatents": "dictsize",
    "nlatents": "dictsize",
    "nfeatures": "dictsize",
    "hiddendim": "dictsize",
    "l1coefficient": "sparsitypenalty",
    "l1penalty": "sparsitypenalty",
    "contextsize": "ctxlen",
    "seqlen": "ctxlen",
}
"""Names in other packages, and ours, as `_plain` writes them."""


def _plain(name: str) -> str:
    """Returns a name as it sounds: without case, separators and the word trainer."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    return plain.replace("trainer", "") or plain


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x' or 'y'?" for the nearest known names, or an empty string."""
    names = list(known)
    as_given = _ELSEWHERE.get(_plain(name), _plain(name))
    # another spelling of one, else what looks alike, the nearest first
    near = [one for one in names if _plain(one) == as_given] or difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


class Stopped(KeyboardInterrupt):
    """A signal stopped what the same call goes on with, or in the shell a command."""

    command: Sequence[str] = ()
    """The words of that command, if it is another one."""

    @property
    def said(self) -> str:
        """What happened, without what goes on."""
        return str(self)


class Interrupted(Stopped):
    """A signal stopped a run, which has written a checkpoint and can be resumed from its folder.

    `step` is that of the checkpoint.
    """

    def __init__(self, step: int, steps: int, folder: str):
        super().__init__(f"The run stopped after step {step} of {steps}. It can go on with resume='auto'.")
        self.step, self.steps, self.folder = step, steps, folder

    @property
    def said(self) -> str:
        return f"The run stopped after step {self.step} of {self.steps}."

    def __reduce__(self) -> Any:
        return type(self), (self.step, self.steps, self.folder)
