"""Placements: what is spread over the processes of a run."""

from typing import Literal, NamedTuple

from dictionary_learning.errors import ConfigError
from dictionary_learning.parallel._ranks import ALONE, Ranks

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


def place(name: PlacementName, world: Ranks, n_dictionaries: int, needs_contexts: bool = False) -> Placement:
    """Returns the placement of a run.

    Args:
        name: What is spread; "auto" for dictionaries if there is one for each rank, which moves
            activations and no gradients, and else for the data.
        world: All ranks.
        n_dictionaries: Dictionaries that are trained.
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
    if name == "dictionary" or (name == "auto" and n_dictionaries >= world.size and not needs_contexts):
        return Placement(world, dictionary=world)
    return Placement(world, data=world)
