"""How much text dictionaries are evaluated on, and what is measured."""

import dataclasses

from dictionary_learning.config import BaseConfig, setting
from dictionary_learning.errors import ConfigError
from dictionary_learning.evaluation._conventions import ConventionName
from dictionary_learning.evaluation._measured import ABLATIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(BaseConfig):
    """How much text dictionaries are evaluated on, in which batches, and what is measured."""

    n_tokens: int = setting(32_768, at_least=1)
    """Tokens to read for the metrics of activations and latents; fewer if the text ends."""
    n_fidelity_tokens: int = setting(8_192, at_least=0)
    """Tokens to read for cross-entropy and KL, with a forward pass per dictionary; 0 for none."""
    ctx_len: int = setting(128, at_least=2)
    """Tokens in a context; a stream of contexts has its own."""
    batch_size: int = setting(8, at_least=1)
    """Contexts in a forward pass."""
    pack: bool = True
    """Whether documents are packed into full contexts, as in training; a stream has done it."""
    ablations: tuple[str, ...] = ABLATIONS
    """What replaces a site's activations, for a baseline: "zero", "mean" or "resample", those
    of a random token; a forward pass each."""
    together: bool = True
    """Whether dictionaries of different sites are also spliced in at once: the first of each site,
    then the second of each."""
    all_tokens: bool = True
    """Whether metrics of activations are also given with the tokens that the filter excludes."""
    breakdown: bool = True
    """Whether the error is also given by position and by kind of token."""
    n_geometry_latents: int = setting(2_048, at_least=0)
    """Latents whose nearest neighbors are looked for among all; 0 for none."""
    n_resamples: int = setting(1_000, at_least=0)
    """Resamples of the documents for the error bars; 0 for none."""
    convention: ConventionName = "canonical"
    """A package whose figures are computed too, by its own rules and names."""
    seed: int = setting(0, at_least=-(2**63), at_most=2**63 - 1)
    """Of the error bars and of what is drawn at random."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [one for one in self.ablations if one not in ABLATIONS]:
            raise ConfigError(f"Got ablations={self.ablations}; {unknown[0]!r} is none of {', '.join(ABLATIONS)}.")
        if len(set(self.ablations)) < len(self.ablations):
            raise ConfigError(f"Got ablations={self.ablations}, with one of them twice. Give each once.")
