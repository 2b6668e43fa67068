"""What a dashboard is told of a dictionary."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from dictionary_learning.errors import ConfigError
from dictionary_learning.interpretation import (
    Explanation,
    LatentContexts,
    LatentStatistics,
    Neighbors,
    TokenEffects,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DictionaryPage:
    """A dictionary, and what is known of its latents; what is None is left out of the pages.

    Contexts are asked for latent by latent, so that they may lie on a disk.
    """

    name: str
    """Its name, which no other page of the dashboard has."""
    site: str = ""
    """The site that it reads."""
    kind: str = ""
    """Its class, and what else tells it from others."""
    dict_size: int
    statistics: LatentStatistics
    contexts: Callable[[int], LatentContexts]
    """Returns the contexts of a latent."""
    token_text: Callable[[Sequence[int]], Sequence[str]]
    """Returns the text of each token id."""
    effects: TokenEffects | None = None
    neighbors: Neighbors | None = None
    matches: Mapping[str, Neighbors] = dataclasses.field(default_factory=dict)
    """The nearest latents of other dictionaries, by the names of their pages."""
    map: Float[Tensor, "dict_size 2"] | None = None
    """Places of latents in a plane, where those of near directions are near."""
    explanations: Mapping[int, Sequence[Explanation]] = dataclasses.field(default_factory=dict)
    """By latent."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("Got a page without a name. Give each dictionary one, by which links find it.")
        if self.dict_size < 1:
            raise ConfigError(f"Got dict_size={self.dict_size} for '{self.name}'; a dictionary has a latent at least.")
        tensors = {"statistics": self.statistics.density, "map": self.map}
        tensors["effects"] = None if self.effects is None else self.effects.promoted
        tensors["neighbors"] = None if self.neighbors is None else self.neighbors.latents
        tensors |= {f"matches['{name}']": match.latents for name, match in self.matches.items()}
        for name, tensor in tensors.items():
            if tensor is not None and len(tensor) != self.dict_size:
                raise ConfigError(
                    f"Page '{self.name}' has dict_size={self.dict_size}, and its {name} are of {len(tensor)} latents. "
                    "Give what was computed of this dictionary."
                )
        unknown = next((i for i in self.explanations if not 0 <= i < self.dict_size), None)
        if unknown is not None:
            raise ConfigError(
                f"Page '{self.name}' explains latent {unknown}; the dictionary has latents 0 to {self.dict_size - 1}."
            )


def check_pages(pages: Sequence[DictionaryPage]) -> None:
    """Checks that links among pages lead somewhere.

    Raises:
        ConfigError: There is no page, two have one name, or one matches latents of a third.
    """
    if not pages:
        raise ConfigError("Got no page. Give a DictionaryPage for each dictionary.")
    names = [page.name for page in pages]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"Two pages are named '{twice}'. Give each dictionary a name of its own.")
    for page in pages:
        strange = next((name for name in page.matches if name not in names), None)
        if strange is not None:
            raise ConfigError(
                f"Page '{page.name}' has matches in '{strange}', which is no page. Pages: {', '.join(names)}."
            )
