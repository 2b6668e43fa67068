"""Nonlinearities by name. To add one: a file and a line here, or a class in your own file."""

from dictionary_learning.dictionaries.nonlinearities._base import (
    NONLINEARITIES,
    Elementwise,
    Nonlinearity,
    RuleSelection,
    SparseSelection,
    ThresholdForm,
)
from dictionary_learning.dictionaries.nonlinearities._gated import Gated
from dictionary_learning.dictionaries.nonlinearities._jump_relu import JumpReLU
from dictionary_learning.dictionaries.nonlinearities._matching_pursuit import MatchingPursuit, StoppedPursuit
from dictionary_learning.dictionaries.nonlinearities._relu import Identity, ReLU, TanhReLU
from dictionary_learning.dictionaries.nonlinearities._rules import AbsTopK, GroupMax, TopKUnrectified
from dictionary_learning.dictionaries.nonlinearities._top_k import BatchTopK, ThresholdedTopK, TopK

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
