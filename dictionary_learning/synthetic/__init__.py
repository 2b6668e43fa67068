"""Activations made of known features, for measuring what a dictionary finds of them."""

from dictionary_learning.synthetic._config import SyntheticConfig, synth_sae_bench_16k, synth_sae_bench_small
from dictionary_learning.synthetic._data import SyntheticActivations

__all__ = ["SyntheticActivations", "SyntheticConfig", "synth_sae_bench_16k", "synth_sae_bench_small"]
