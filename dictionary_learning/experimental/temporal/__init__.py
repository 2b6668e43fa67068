"""Temporal dictionaries (Lubana et al. 2025, https://arxiv.org/abs/2511.01836)."""

from dictionary_learning.experimental.temporal._dictionary import TemporalAutoencoder
from dictionary_learning.experimental.temporal._trainer import TemporalTrainer, lubana_2025

__all__ = ["TemporalAutoencoder", "TemporalTrainer", "lubana_2025"]
