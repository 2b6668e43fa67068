"""How good dictionaries are.

* `evaluate_dictionaries(model, candidates, text)` measures several on text, spliced into the model.
* `compare_reports(reports)` says which differences between them are more than chance.
* `read_report(path)` and `merge_reports(reports)` read and join what was written.
* `decoder_geometry`, `match_dictionaries` and `seed_stability` compare directions.
* `evaluate_activations(dictionary, activations)` measures one on activations alone.
* `evaluate` and `loss_recovered` are functions of dictionary-learning 0.1 (`compat`).
"""

from typing import TYPE_CHECKING

from dictionary_learning._lazy import lazy_names
from dictionary_learning.evaluation._bootstrap import ErrorBar
from dictionary_learning.evaluation._candidates import Candidate
from dictionary_learning.evaluation._compare import Comparison, Difference, compare_reports
from dictionary_learning.evaluation._config import EvaluationConfig
from dictionary_learning.evaluation._geometry import (
    Geometry,
    Match,
    decoder_geometry,
    match_dictionaries,
    seed_stability,
)
from dictionary_learning.evaluation._metrics import METRICS, EvaluationBatch, Metric, ReconstructionMetric
from dictionary_learning.evaluation._on_activations import evaluate_activations
from dictionary_learning.evaluation._reading import merge_reports, read_report
from dictionary_learning.evaluation._records import (
    AblationReport,
    DataReport,
    DictionaryReport,
    Figure,
    Report,
    TogetherReport,
    TokenGroupReport,
)
from dictionary_learning.evaluation._runner import evaluate_dictionaries
from dictionary_learning.evaluation._sparsity import SparsityMetric

if TYPE_CHECKING:
    from dictionary_learning.compat._evaluation import evaluate, loss_recovered

__all__ = [
    "METRICS",
    "AblationReport",
    "Candidate",
    "Comparison",
    "DataReport",
    "DictionaryReport",
    "Difference",
    "ErrorBar",
    "EvaluationBatch",
    "EvaluationConfig",
    "Figure",
    "Geometry",
    "Match",
    "Metric",
    "ReconstructionMetric",
    "Report",
    "SparsityMetric",
    "TogetherReport",
    "TokenGroupReport",
    "compare_reports",
    "decoder_geometry",
    "evaluate",
    "evaluate_activations",
    "evaluate_dictionaries",
    "loss_recovered",
    "match_dictionaries",
    "merge_reports",
    "read_report",
    "seed_stability",
]

# `compat` imports this package, so its names are looked up when they are used
__getattr__, __dir__ = lazy_names(
    __name__, dict.fromkeys(("evaluate", "loss_recovered"), "dictionary_learning.compat._evaluation")
)
