"""Settings of activations with known features. Defaults without a source are SynthSAEBench's."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dictionary_learning._coercion import check_range, coerce
from dictionary_learning.config import BaseConfig, Registry
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


class Case(NamedTuple):
    """Known features, and how dictionaries are trained to find them."""

    features: SyntheticConfig
    dict_size: int | None = None
    """Latents of methods that are given no number, fewer than features; None leaves them alone."""
    k: int | None = None
    """Latents per row of methods that keep a set number, and are given none."""
    n_tokens: int = 1_000_000
    """Rows to train on."""


CASES: Registry[Callable[[], Case]] = Registry("synthetic case")
"""Named cases; each entry builds its `Case`."""


def as_case(given: Any) -> Case:
    """Returns a case given by name, as settings of its features, or as a mapping.

    A mapping has the fields of `SyntheticConfig` and `Case`; `like` names a case, which it changes.

    Raises:
        ConfigError: It is none of these, or a value cannot be used.
    """
    if isinstance(given, str):
        return CASES[given]()
    if isinstance(given, SyntheticConfig):
        return Case(given)
    if isinstance(given, Case):
        own = {name: value for name in _OF_A_CASE if (value := getattr(given, name)) is not None}
        return given._replace(**{name: _whole(name, value) for name, value in own.items()})
    if not isinstance(given, Mapping):
        raise ConfigError(f"Got {given!r} for a synthetic case; give one of {', '.join(CASES)}, or a SyntheticConfig.")
    settings = {str(name): value for name, value in given.items()}
    like = settings.pop("like", None)
    start = None if like is None else as_case(like)
    own = {name: _whole(name, settings.pop(name)) for name in _OF_A_CASE if name in settings}
    if start is None:
        return Case(SyntheticConfig.from_dict(settings), **own)
    return start._replace(features=start.features.replace(**settings), **own)


_OF_A_CASE = ("dict_size", "k", "n_tokens")


def _whole(name: str, value: Any) -> int:
    try:
        found: int = coerce(value, int)
        check_range(found, {"at_least": 1})
    except (TypeError, ValueError):
        needed = "it must be a whole number of at least 1"
        raise ConfigError(f"Got {name}={value!r} for a synthetic case; {needed}.") from None
    return found


def synth_sae_bench_16k() -> SyntheticConfig:
    """Returns the published settings of SynthSAEBench-16k. https://arxiv.org/abs/2602.14687"""
    return SyntheticConfig(n_features=16_384, activation_dim=768)


def synth_sae_bench_small() -> SyntheticConfig:
    """Returns similar settings for two CPU cores: 1,024 features in 96 dimensions."""
    return SyntheticConfig(n_features=1024, activation_dim=96, n_roots=8, min_probability=2e-3, correlation_rank=8)


@CASES.register("synth_sae_bench_16k")
def case_16k() -> Case:
    """Returns SynthSAEBench-16k as published: 200 million rows, which takes a GPU."""
    return Case(synth_sae_bench_16k(), dict_size=4096, k=25, n_tokens=200_000_000)


@CASES.register("small")
def case_small() -> Case:
    """Returns the case of minutes: 1,024 features in 96 dimensions, a million rows.

    The 256 most frequent features have 5.6 of the firings of a row.
    """
    return Case(synth_sae_bench_small(), dict_size=256, k=6, n_tokens=1_000_000)


@CASES.register("sae_lens_2k")
def case_sae_lens_2k() -> Case:
    """Returns a case that SAELens' generator makes too: 2,048 features in 128 dimensions.

    Zipf exponent 0.5, 16 trees of depth 3 whose nodes have 4 children, of which one fires. 12.1
    features fire in a row. In SAELens this is `SyntheticModelConfig` with
    `compensate_probabilities`, `scale_children_by_parent` and all children mutually exclusive.
    """
    features = SyntheticConfig(
        n_features=2048, activation_dim=128, n_roots=16, min_probability=2e-3, correlation_rank=16
    )
    return Case(features, dict_size=512, k=12, n_tokens=1_500_000)
