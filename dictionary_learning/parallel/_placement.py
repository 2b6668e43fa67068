"""Placements: what is spread over the processes of a run."""

import logging
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeVar

from dictionary_learning.errors import ConfigError
from dictionary_learning.parallel._costs import Sizes, costs
from dictionary_learning.parallel._ranks import ALONE, Ranks

logger = logging.getLogger(__name__)

T = TypeVar("T")
PlacementName = Literal["auto", "data", "dictionary", "latent"]


class Placement(NamedTuple):
    """Which ranks have other tokens of a step, other dictionaries, or other latents.

    Every rank traces text of its own. With `data`, each has every dictionary, and gradients are
    summed. With `dictionary`, each has some of the dictionaries, and with `latent` some of the
    latents of each; activations are exchanged. `latent` and `data` may be combined.
    """

    world: Ranks = ALONE
    """All ranks of the run."""
    data: Ranks = ALONE
    """Those that have the same dictionaries, and other tokens of the same step."""
    dictionary: Ranks = ALONE
    """Those that have other dictionaries, and train on the same tokens."""
    latent: Ranks = ALONE
    """Those that have other latents of the same dictionaries, and train on the same tokens."""

    @property
    def same_tokens(self) -> Ranks:
        """The ranks that train on the same tokens, which each has traced a part of."""
        return self.latent if self.latent.size > 1 else self.dictionary

    @property
    def is_divided(self) -> bool:
        """Whether no rank has all of the dictionaries."""
        return self.same_tokens.size > 1

    @property
    def name(self) -> str:
        """What is spread."""
        if self.world.size == 1:
            return "none"
        kinds = {"data": self.data, "dictionary": self.dictionary, "latent": self.latent}
        return " and ".join(name for name, ranks in kinds.items() if ranks.size > 1)

    def of_all(self, own: Iterable[tuple[int, T]]) -> list[T]:
        """Returns what ranks have for their dictionaries, in the order of all of them."""
        found = [one for part in self.dictionary.collect(list(own)) for one in part]
        return [value for _, value in sorted(found, key=lambda one: one[0])]

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
    latent_ranks: int | None = None,
    needs_contexts: bool = False,
    undivided: str = "",
    memory: int | None = None,
) -> Placement:
    """Returns the placement of a run.

    Args:
        name: What is spread; "auto" for what takes the least time by `costs`.
        world: All ranks.
        dictionaries: What is trained.
        n_tokens: Tokens of a step, of all ranks together.
        row_bytes: Bytes of a token's activations at all sites.
        latent_ranks: Ranks that share the latents of a dictionary; all of them by default.
        needs_contexts: Whether steps need whole contexts with their model, which cannot be moved.
        undivided: Why the latents of these dictionaries cannot be spread, as a sentence; "" if they
            can.
        memory: Bytes of a rank's device; None if that is unknown.

    Raises:
        ConfigError: The placement cannot be used.
    """
    if latent_ranks is not None and (name != "latent" or latent_ranks < 1 or world.size % latent_ranks):
        raise ConfigError(
            f"Got latent_ranks={latent_ranks} with placement={name!r} on {world.size} processes. Give it with "
            f"placement='latent', as a number that divides {world.size}."
        )
    if world.size == 1:
        return SINGLE
    if name in ("dictionary", "latent") and needs_contexts:
        raise ConfigError(
            f"Got placement={name!r} with contexts: the model's loss cannot be computed on another rank than that "
            "of the text. Use placement='data'."
        )
    if name == "latent" and undivided:
        raise ConfigError(f"Got placement='latent'. {undivided}")
    chosen: str = name
    if name == "auto":
        found = costs(dictionaries, n_tokens, world.size, row_bytes, memory)
        usable = [cost for cost in found if cost.placement == "data" or not needs_contexts]
        usable = [cost for cost in usable if cost.placement != "latent" or not undivided]
        chosen = usable[0].placement
        logger.info("Over %d processes, placement 'auto' spreads: %s.", world.size, chosen)
    if chosen == "dictionary":
        return Placement(world, dictionary=world)
    if chosen == "latent":
        data, latent = (ALONE, world) if latent_ranks in (None, world.size) else world.grid(latent_ranks)
        return Placement(world, data=data, latent=latent)
    return Placement(world, data=world)
