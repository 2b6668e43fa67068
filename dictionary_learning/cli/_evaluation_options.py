"""Options of the commands that evaluate: those of `EvaluationConfig`."""

import dataclasses
from typing import Any, Literal

from dictionary_learning.cli._arguments import CommandArguments
from dictionary_learning.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationArguments(CommandArguments):
    """What is measured, beside the tokens that it is measured on."""

    convention: Literal["canonical", "dictionary_learning", "saelens", "saebench"] = "canonical"
    """A package whose figures are computed too, by its own rules and names."""
    n_resamples: int = 1_000
    """Resamples of the documents for the error bars; 0 for none."""
    ablations: tuple[Literal["zero", "mean", "resample", "none"], ...] = ("zero", "mean", "resample")
    """What replaces a site's activations, for a baseline: resample takes those of a random token. A
    forward pass each."""
    together: bool = True
    """Whether dictionaries of different sites are also spliced in at once."""
    all_tokens: bool = True
    """Whether metrics are also given with the tokens that are excluded."""
    breakdown: bool = True
    """Whether the error is also given by position and by kind of token."""
    n_geometry_latents: int = 2_048
    """Latents whose nearest neighbors are looked for among all; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        shown = " ".join(self.ablations)
        if "none" in self.ablations and len(self.ablations) > 1:
            raise ConfigError(f"Got --ablations {shown}: none stands alone. Leave it out, or give only none.")
        if len(set(self.ablations)) < len(self.ablations):
            raise ConfigError(f"Got --ablations {shown}, with one of them twice. Give each once.")

    def measured(self) -> dict[str, Any]:
        """Returns these options, as arguments of an `EvaluationConfig`."""
        names = ("convention", "n_resamples", "together", "all_tokens", "breakdown", "n_geometry_latents")
        return {**self.options(*names), "ablations": tuple(one for one in self.ablations if one != "none")}
