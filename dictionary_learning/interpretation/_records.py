"""What is known of latents: the words that contexts, explanations, dashboards and exports share."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning._brief import brief


class Example(NamedTuple):
    """A window of text, and a latent's activation on each of its tokens."""

    token_ids: Int[Tensor, "window"]
    activations: Float[Tensor, "window"]
    peak: int
    """The place in the window of the token that it was chosen for."""
    document: int
    position: int
    """The place in its document of the token at `peak`."""

    __repr__ = brief


class LatentContexts(NamedTuple):
    """Where a latent is active, and where it is not."""

    top: tuple[Example, ...]
    """Those of its largest activations, the largest first, at most one of a context."""
    quantiles: tuple[tuple[Example, ...], ...]
    """Random tokens of equal shares of those where it is active, from the largest activations."""
    quiet: tuple[Example, ...]
    """Random windows on which it is never active."""

    def __repr__(self) -> str:
        each = ", ".join(str(len(one)) for one in self.quantiles)
        return f"LatentContexts({len(self.top)} top examples, {each} of quantiles, {len(self.quiet)} quiet)"


class LatentStatistics(NamedTuple):
    """Of all latents of a dictionary, over the tokens that were read."""

    n_tokens: int
    density: Float[Tensor, "dict_size"]
    """The share of tokens where a latent is active."""
    mean: Float[Tensor, "dict_size"]
    """The mean activation where it is active; 0 if it never is."""
    maximum: Float[Tensor, "dict_size"]
    histogram: Int[Tensor, "dict_size bins"]
    """Tokens where it is active by activation, in bins of equal width from 0 to `upper`."""
    upper: Float[Tensor, "dict_size"] | None = None
    """The end of the last bin, the first power of two above `maximum`; None for `maximum`."""

    __repr__ = brief


class TokenEffects(NamedTuple):
    """What one unit of each latent adds to the logits, by the logit lens."""

    promoted: Int[Tensor, "dict_size n"]
    promoted_logits: Float[Tensor, "dict_size n"]
    suppressed: Int[Tensor, "dict_size n"]
    suppressed_logits: Float[Tensor, "dict_size n"]
    histogram: Int[Tensor, "dict_size bins"]
    """Tokens of the vocabulary by what is added to their logit, in bins of equal width
    between `low` and `high`."""
    low: Float[Tensor, "dict_size"]
    high: Float[Tensor, "dict_size"]

    __repr__ = brief


class Neighbors(NamedTuple):
    """The latents of a dictionary whose directions are nearest, by cosine similarity."""

    latents: Int[Tensor, "dict_size n"]
    similarities: Float[Tensor, "dict_size n"]

    __repr__ = brief


class Explanation(NamedTuple):
    """What somebody says that a latent means, and how well that holds."""

    text: str
    explainer: str
    scores: dict[str, float]
    """By the method that scored it, from 0 to 1."""
