"""Settings of activations with known features. Defaults without a source are SynthSAEBench's."""

import dataclasses

from dictionary_learning.config import BaseConfig
from dictionary_learning.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticConfig(BaseConfig):
    """Settings of activations with known features; the first feature is the most frequent."""

    n_features: int
    """Number of features."""
    activation_dim: int
    """Width of the activations."""
    zipf_exponent: float = 0.5
    """Exponent of the power law by which firing probabilities fall with the rank."""
    max_probability: float = 0.4
    """Firing probability of the first feature, before the hierarchy."""
    min_probability: float = 5e-4
    """Firing probability of the last feature, before the hierarchy."""
    n_roots: int = 128
    """Number of trees; 0 for features without hierarchy."""
    branching: int = 4
    """Children of each inner feature, at most one of which fires."""
    depth: int = 3
    """Levels below the roots."""
    compensate: bool = True
    """Whether children are drawn more often to balance the hierarchy; implied by the paper's L0."""
    correlation_rank: int = 25
    """Number of common causes; 0 for independent features."""
    correlation: float = 0.1
    """Standard deviation of a loading on a common cause."""
    first_magnitude: float = 5.0
    """Mean magnitude of the first feature."""
    last_magnitude: float = 4.0
    """Mean magnitude of the last feature."""
    magnitude_std: float = 0.5
    """Standard deviation of a magnitude before its absolute value is taken."""
    bias_norm: float = 0.5
    """Norm of the vector that is added to all activations."""
    separation_steps: int = 100
    """Gradient steps that reduce the overlap of features. Our choice."""
    batch_size: int = 1024
    """Rows in a batch."""
    seed: int = 42
    """Seed of the features and of the stream. Our choice."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_probability <= self.max_probability < 1:
            raise ConfigError(
                f"Firing probabilities {self.max_probability} to {self.min_probability} must fall, within 0 and 1."
            )
        n_nodes = self.n_roots * sum(self.branching**level for level in range(self.depth + 1))
        if n_nodes > self.n_features:
            raise ConfigError(
                f"The hierarchy has {n_nodes} features, n_features is {self.n_features}; lower n_roots or depth."
            )


def synth_sae_bench_16k() -> SyntheticConfig:
    """Returns the published settings of SynthSAEBench-16k. https://arxiv.org/abs/2602.14687"""
    return SyntheticConfig(n_features=16_384, activation_dim=768)


def synth_sae_bench_small() -> SyntheticConfig:
    """Returns similar settings for two CPU cores: 1,024 features in 96 dimensions."""
    return SyntheticConfig(n_features=1024, activation_dim=96, n_roots=8, min_probability=2e-3, correlation_rank=8)
