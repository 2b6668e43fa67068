"""Caches of activations of mats_sae_training: what to use instead."""

from dictionary_learning.compat._no_counterpart import refusing
from dictionary_learning.compat.saelens._names import MATS_NAMES

__getattr__ = refusing(__name__, "mats_sae_training", MATS_NAMES["cache_activations_runner"])
