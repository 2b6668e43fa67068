"""How good dictionaries are: figures of activations, and of the model when they are grafted in."""

from dictionary_learning.evaluation.base import METRICS, EvaluationBatch, Metric
from dictionary_learning.evaluation.evaluate import evaluate, loss_recovered
from dictionary_learning.evaluation.reconstruction import ReconstructionMetric
from dictionary_learning.evaluation.runner import Candidate, EvaluationConfig, evaluate_dictionaries
from dictionary_learning.evaluation.sparsity import SparsityMetric

__all__ = [
    "METRICS",
    "Candidate",
    "EvaluationBatch",
    "EvaluationConfig",
    "Metric",
    "ReconstructionMetric",
    "SparsityMetric",
    "evaluate",
    "evaluate_dictionaries",
    "loss_recovered",
]
