"""How good dictionaries are.

* `evaluate_dictionaries(model, candidates, text)` measures several on text, spliced into the model.
* `evaluate_activations(dictionary, activations)` measures one on activations alone.
* `evaluate` and `loss_recovered` are functions of dictionary-learning 0.1 (`compat`).
"""

from typing import TYPE_CHECKING

from dictionary_learning._lazy import lazy_names
from dictionary_learning.evaluation._candidates import Candidate
from dictionary_learning.evaluation._metrics import (
    METRICS,
    EvaluationBatch,
    Metric,
    ReconstructionMetric,
    SparsityMetric,
)
from dictionary_learning.evaluation._on_activations import evaluate_activations
from dictionary_learning.evaluation._runner import EvaluationConfig, Report, evaluate_dictionaries

if TYPE_CHECKING:
    from dictionary_learning.compat._evaluation import evaluate, loss_recovered

__all__ = [
    "METRICS",
    "Candidate",
    "EvaluationBatch",
    "EvaluationConfig",
    "Metric",
    "ReconstructionMetric",
    "Report",
    "SparsityMetric",
    "evaluate",
    "evaluate_activations",
    "evaluate_dictionaries",
    "loss_recovered",
]

# `compat` imports this package, so its names are looked up when they are used
__getattr__, __dir__ = lazy_names(
    __name__, dict.fromkeys(("evaluate", "loss_recovered"), "dictionary_learning.compat._evaluation")
)
