"""Sweeps: every combination of methods and settings on one stream of activations, and a report.

* `run_sweep(config, data, steps, save_dir, evaluation_data=text)` trains, evaluates and reports.
* `SweepConfig(methods=..., grid=...)` names the combinations, which `points()` returns.
* `SweepResult` holds a `Row` of figures for each dictionary.
"""

from dictionary_learning.sweeps._config import Point, SweepConfig
from dictionary_learning.sweeps._results import Row, SweepResult
from dictionary_learning.sweeps._run import run_sweep

__all__ = ["Point", "Row", "SweepConfig", "SweepResult", "run_sweep"]
