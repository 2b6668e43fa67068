"""Placements: what is spread over the processes of a run."""

import logging
from collections.abc import Sequence
from typing import Literal, NamedTuple

from dictionary_learning.errors import ConfigError
from dictionary_learning.parallel._costs import Sizes, costs
from dictionary_learning.parallel._ranks import ALONE, Ranks

logger = logging.getLogger(__name__)

PlacementName = Literal["auto", "data", "dictionary"]


class Placement(NamedTuple):
    """Which ranks have other tokens of a dictionary's step, and which have other dictionaries.

    Every rank traces text of its own. With `data`, each has every dictionary, and gradients are
    summed. With `dictionary`, each has some of the dictionaries, and activations are exchanged.
    """

    world: Ranks = ALONE
    """All ranks of the run."""
    data: Ranks = ALONE
    """Those that have the same dictionaries, and other tokens of the same step."""
    dictionary: Ranks = ALONE
    """Those that have other dictionaries, and train on the same tokens."""

    @property
    def name(self) -> str:
        """What is spread."""
        return "none" if self.world.size == 1 else "data" if self.data.size > 1 else "dictionary"

    def owner(self, number: int) -> int:
        """Returns the rank, among those with other dictionaries, that has a dictionary."""
        return number % self.dictionary.size

    def owns(self, number: int) -> bool:
        """Returns whether this rank has a dictionary."""
        return self.owner(number) == self.dictionary.rank


SINGLE = Placement()
"""The placement of a run in one process."""


def place(
    name: PlacementName,
    world: Ranks,
    dictionaries: Sequence[Sizes],
    *,
    n_tokens: int,
    row_bytes: int,
    needs_contexts: bool = False,
) -> Placement:
    """Returns the placement of a run.

    Args:
        name: What is spread; "auto" for what takes the least time by `costs`.
        world: All ranks.
        dictionaries: What is trained.
        n_tokens: Tokens of a step, of all ranks together.
        row_bytes: Bytes of a token's activations at all sites.
        needs_contexts: Whether steps need whole contexts with their model, which cannot be moved.

    Raises:
        ConfigError: The placement cannot be used.
    """
    if world.size == 1:
        return SINGLE
    if name == "dictionary" and needs_contexts:
        raise ConfigError(
            "Got placement='dictionary' with contexts: the model's loss cannot be computed on another rank than that "
            "of the text. Use placement='data'."
        )
    chosen = name
    if name == "auto":
        chosen = "data" if needs_contexts else costs(dictionaries, n_tokens, world.size, row_bytes)[0].placement
        logger.info("Over %d processes, placement 'auto' spreads: %s.", world.size, chosen)
    if chosen == "dictionary":
        return Placement(world, dictionary=world)
    return Placement(world, data=world)
