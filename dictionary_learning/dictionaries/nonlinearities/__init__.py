"""Nonlinearities by name. To add one: a file and a line here, or a class in your own file."""

from dictionary_learning.dictionaries.nonlinearities.abs_top_k import AbsTopK
from dictionary_learning.dictionaries.nonlinearities.base import (
    NONLINEARITIES,
    Elementwise,
    Nonlinearity,
    RuleSelection,
    SparseSelection,
    ThresholdForm,
)
from dictionary_learning.dictionaries.nonlinearities.batch_top_k import BatchTopK
from dictionary_learning.dictionaries.nonlinearities.gated import Gated
from dictionary_learning.dictionaries.nonlinearities.group_max import GroupMax
from dictionary_learning.dictionaries.nonlinearities.jump_relu import JumpReLU
from dictionary_learning.dictionaries.nonlinearities.matching_pursuit import MatchingPursuit, StoppedPursuit
from dictionary_learning.dictionaries.nonlinearities.relu import Identity, ReLU, TanhReLU
from dictionary_learning.dictionaries.nonlinearities.top_k import ThresholdedTopK, TopK, TopKUnrectified

__all__ = [
    "NONLINEARITIES",
    "AbsTopK",
    "BatchTopK",
    "Elementwise",
    "Gated",
    "GroupMax",
    "Identity",
    "JumpReLU",
    "MatchingPursuit",
    "Nonlinearity",
    "ReLU",
    "RuleSelection",
    "SparseSelection",
    "StoppedPursuit",
    "TanhReLU",
    "ThresholdForm",
    "ThresholdedTopK",
    "TopK",
    "TopKUnrectified",
]
