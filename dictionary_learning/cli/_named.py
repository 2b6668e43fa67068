"""What the files of a dictionary may decide about an evaluation: they may be a stranger's.

A model and a text that they name are read without being asked for only if they are a name on the
hub, or lie in the current folder.
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dictionary_learning.errors import ConfigError

_ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w./-]+)?")
_HARMLESS = ("revision", "name", "num_proc")
"""Arguments of `datasets.load_dataset` that choose neither files nor code."""


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
    from dictionary_learning._plain import HIDDEN

    odd = [pair for pair in pairs if pair.partition("=")[0] not in _HARMLESS and not pair.endswith(HIDDEN)]
    if odd:
        raise ConfigError(
            f"The dictionary's files ask to read the text with {', '.join(odd)}, which may be a stranger's choice. "
            f"Give --data-args {' '.join(odd)} if you mean it."
        )
