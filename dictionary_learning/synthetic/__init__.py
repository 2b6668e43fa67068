"""Activations made of known features, for measuring what a dictionary finds of them.

* `SyntheticActivations(SyntheticConfig(...))` is a seeded source, which `trainSAE` reads.
* `ground_truth(dictionary, data)` scores a dictionary against its features.
* `CASES` are named cases; `dictionary_learning.benchmark_synthetic` trains and scores on one.
"""

from dictionary_learning.synthetic._config import (
    CASES,
    Case,
    SyntheticConfig,
    as_case,
    synth_sae_bench_16k,
    synth_sae_bench_small,
)
from dictionary_learning.synthetic._data import SyntheticActivations
from dictionary_learning.synthetic._score import GroundTruth, ground_truth

__all__ = [
    "CASES",
    "Case",
    "GroundTruth",
    "SyntheticActivations",
    "SyntheticConfig",
    "as_case",
    "ground_truth",
    "synth_sae_bench_16k",
    "synth_sae_bench_small",
]
