"""Several edits as one: those of the same site one after another."""

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from dictionary_learning._border import checked, short
from dictionary_learning._module_io import apply_edit
from dictionary_learning.capture._ordinary import CHANGES_SPECIAL
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError
from dictionary_learning.models import Edit
from dictionary_learning.sites import Site

E = TypeVar("E", bound=Edit)
_READS_CONTEXTS = "reads_contexts"
"""An edit's attribute: whether its dictionary has to see the tokens before."""


@checked()
def combine(*edits: Mapping[Any, Edit]) -> dict[Site, Edit]:
    """Returns the edits of several dictionaries as those of one forward pass.

    Where two are of the same site, the second sees what the first made of the activations.

    Raises:
        ConfigError: One is no mapping from sites to functions.
    """
    found: dict[Site, list[Edit]] = {}
    for each in edits:
        check_edits(each)
        for site, edit in each.items():
            found.setdefault(Site.parse(site), []).append(edit)
    return {site: several[0] if len(several) == 1 else _in_turn(several, site) for site, several in found.items()}


def check_edits(given: Any) -> None:
    """Raises ConfigError if something is no mapping from sites to functions."""
    values: Any = given.values() if isinstance(given, Mapping) else [None]
    if not all(map(callable, values)):
        raise ConfigError(
            f"Got {short(given)} as edits; give mappings from sites to functions, such as {{'model.layers.3': edit}}."
        )


def reading_contexts(edit: E, dictionary: Dictionary) -> E:
    """Notes with an edit whether its dictionary has to see the tokens before."""
    if dictionary.reads_contexts:
        setattr(edit, _READS_CONTEXTS, True)
    return edit


def reads_contexts(edit: Edit) -> bool:
    """Returns whether an edit has to see the tokens before."""
    return getattr(edit, _READS_CONTEXTS, False)


def _in_turn(edits: list[Edit], site: Site) -> Edit:
    def edit(x: Tensor) -> Tensor | None:
        changed: Tensor | None = None
        for each in edits:
            new = apply_edit(each, x if changed is None else changed, site)
            changed = changed if new is None else new
        return changed

    changes_special = {getattr(each, CHANGES_SPECIAL, False) for each in edits}
    if len(changes_special) > 1:
        raise ConfigError(
            f"Got edits at '{site}' of which only some were made with special_tokens=True. Make all or none with it."
        )
    setattr(edit, CHANGES_SPECIAL, True in changes_special)
    if any(map(reads_contexts, edits)):
        setattr(edit, _READS_CONTEXTS, True)
    return edit
