"""Sweeps: every combination of methods and settings on one stream of activations, and a report.

* `run_sweep(config, data, steps, save_dir, evaluation_data=text)` trains, evaluates and reports.
* `SweepConfig(methods=..., grid=...)` names the combinations, which `points()` returns.
* `benchmark_synthetic(methods, save_dir)` trains methods on known features, and scores them.
* `SweepResult` holds a `Row` of figures for each dictionary.
"""

from dictionary_learning.sweeps._config import Point, SweepConfig
from dictionary_learning.sweeps._results import Row, SweepResult
from dictionary_learning.sweeps._run import run_sweep
from dictionary_learning.sweeps._synthetic import SyntheticResult, benchmark_synthetic

__all__ = ["Point", "Row", "SweepConfig", "SweepResult", "SyntheticResult", "benchmark_synthetic", "run_sweep"]
