"""What dictionaries are good for: tasks that their latents should solve, beside baselines.

* `probe_latents(model, candidates, tasks)`: few latents that tell the labels of texts.
* `as_probe_tasks` and `sae_probes_tasks` read labelled texts.
"""

from dictionary_learning.evaluation.downstream._probing import ProbingConfig, probe_latents
from dictionary_learning.evaluation.downstream._records import DownstreamReport, ProbingReport, Scored, TaskReport
from dictionary_learning.evaluation.downstream._sae_probes import sae_probes_tasks
from dictionary_learning.evaluation.downstream._tasks import ProbeTask, TaskLike, as_probe_tasks

__all__ = [
    "DownstreamReport",
    "ProbeTask",
    "ProbingConfig",
    "ProbingReport",
    "Scored",
    "TaskLike",
    "TaskReport",
    "as_probe_tasks",
    "probe_latents",
    "sae_probes_tasks",
]
