"""What dictionaries are good for: tasks that their latents should solve, beside baselines.

* `probe_latents(model, candidates, tasks)`: few latents that tell the labels of texts.
* `feature_absorption(model, candidates)`: latents of a first letter that are silent where they
  should fire.
* `targeted_probe_perturbation` and `spurious_correlation_removal`: what ablating latents does to
  probes.
* `disentangle_attributes(model, candidates)`: attributes of entities, changed one at a time.
* `context_sensitivity(model, candidates, text)`: what of a token's latents comes from the context.
* `as_probe_tasks` and `sae_probes_tasks` read labelled texts.
"""

from dictionary_learning.evaluation.downstream._absorption import AbsorptionConfig, feature_absorption
from dictionary_learning.evaluation.downstream._context import ContextConfig, context_sensitivity
from dictionary_learning.evaluation.downstream._disentangling import DisentanglingConfig, disentangle_attributes
from dictionary_learning.evaluation.downstream._perturbing import (
    PerturbationConfig,
    spurious_correlation_removal,
    targeted_probe_perturbation,
)
from dictionary_learning.evaluation.downstream._probing import ProbingConfig, probe_latents
from dictionary_learning.evaluation.downstream._records import (
    AblationScoresReport,
    AbsorptionEntry,
    AbsorptionReport,
    ContextReport,
    DisentanglingReport,
    DownstreamReport,
    LetterReport,
    ProbingReport,
    Scored,
    TaskReport,
)
from dictionary_learning.evaluation.downstream._sae_probes import sae_probes_tasks
from dictionary_learning.evaluation.downstream._tasks import ProbeTask, TaskLike, as_probe_tasks

__all__ = [
    "AblationScoresReport",
    "AbsorptionConfig",
    "AbsorptionEntry",
    "AbsorptionReport",
    "ContextConfig",
    "ContextReport",
    "DisentanglingConfig",
    "DisentanglingReport",
    "DownstreamReport",
    "LetterReport",
    "PerturbationConfig",
    "ProbeTask",
    "ProbingConfig",
    "ProbingReport",
    "Scored",
    "TaskLike",
    "TaskReport",
    "as_probe_tasks",
    "context_sensitivity",
    "disentangle_attributes",
    "feature_absorption",
    "probe_latents",
    "sae_probes_tasks",
    "spurious_correlation_removal",
    "targeted_probe_perturbation",
]
