"""Nonlinearities, one file each."""

from dictionary_learning.dictionaries.nonlinearities.abs_top_k import AbsTopK
from dictionary_learning.dictionaries.nonlinearities.base import (
    NONLINEARITIES,
    Elementwise,
    Nonlinearity,
    SparseSelection,
)
from dictionary_learning.dictionaries.nonlinearities.batch_top_k import BatchTopK
from dictionary_learning.dictionaries.nonlinearities.gated import Gated
from dictionary_learning.dictionaries.nonlinearities.group_max import GroupMax
from dictionary_learning.dictionaries.nonlinearities.identity import Identity
from dictionary_learning.dictionaries.nonlinearities.jump_relu import JumpReLU
from dictionary_learning.dictionaries.nonlinearities.matching_pursuit import MatchingPursuit
from dictionary_learning.dictionaries.nonlinearities.relu import ReLU
from dictionary_learning.dictionaries.nonlinearities.stopped_pursuit import StoppedPursuit
from dictionary_learning.dictionaries.nonlinearities.tanh_relu import TanhReLU
from dictionary_learning.dictionaries.nonlinearities.threshold import ThresholdedTopK
from dictionary_learning.dictionaries.nonlinearities.top_k import TopK
from dictionary_learning.dictionaries.nonlinearities.top_k_unrectified import TopKUnrectified

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
    "SparseSelection",
    "StoppedPursuit",
    "TanhReLU",
    "ThresholdedTopK",
    "TopK",
    "TopKUnrectified",
]
