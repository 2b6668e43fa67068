"""Dictionary learning on neural-network activations.

`ActivationBuffer` reads activations from a model, `trainSAE` trains dictionaries on them, and
`evaluate_dictionaries` splices the dictionaries back into the model and measures what it loses.
`import dictionary_learning` loads no other
package: a name is imported when it is first used.
"""

from typing import TYPE_CHECKING

from dictionary_learning._lazy import lazy_names

# isort: off
if TYPE_CHECKING:
    from dictionary_learning.activations.cache import ActivationCache, write_cache
    from dictionary_learning.activations._filters import TokenFilter
    from dictionary_learning.activations._mixture import ActivationMixture
    from dictionary_learning.buffer import ActivationBuffer
    from dictionary_learning.compat._evaluation import evaluate, loss_recovered
    from dictionary_learning.compat._loading import pretrained
    from dictionary_learning.contexts import ContextStream
    from dictionary_learning.dictionaries import AutoEncoder, AutoEncoderTopK, BatchTopKSAE, Crosscoder
    from dictionary_learning.dictionaries import CrossLayerTranscoder, Dictionary, DictionaryInfo, GatedAutoEncoder
    from dictionary_learning.dictionaries import IdentityDict
    from dictionary_learning.dictionaries import JumpReluAutoEncoder, SparseAutoencoder, Transcoder
    from dictionary_learning.dictionaries import calibrate, expand_or_convert, fold_decoder_norm_, gradient_pursuit
    from dictionary_learning.dictionaries import leave_one_out
    from dictionary_learning.dictionaries import load_dictionary, save_dictionary
    from dictionary_learning.evaluation import Candidate, EvaluationConfig, evaluate_activations, evaluate_dictionaries
    from dictionary_learning.evaluation.reports import write_report
    from dictionary_learning.interop import Sae, as_custom_sae, convert, list_pretrained, load_from_hub, load_many
    from dictionary_learning.interop import push_to_hub, write_dictionary
    from dictionary_learning._model_set import ModelSet
    from dictionary_learning.models import TracedModel, load_model
    from dictionary_learning.session import Session, load_session
    from dictionary_learning.sites import Site
    from dictionary_learning.sweeps import SweepConfig, benchmark_synthetic, run_sweep
    from dictionary_learning.trainers import BatchTopKTrainer, SAETrainer, TopKTrainer, TrainerTopK
    from dictionary_learning.training import trainSAE
# isort: on

__version__ = "1.0.0rc1"

# the names above by their modules: a test compares the two, and `__all__` with both
_MODULES = {
    "activations.cache": "ActivationCache write_cache",
    "activations._filters": "TokenFilter",
    "activations._mixture": "ActivationMixture",
    "buffer": "ActivationBuffer",
    "compat._evaluation": "evaluate loss_recovered",
    "compat._loading": "pretrained",
    "contexts": "ContextStream",
    "dictionaries": "AutoEncoder AutoEncoderTopK BatchTopKSAE Crosscoder CrossLayerTranscoder Dictionary "
    "DictionaryInfo GatedAutoEncoder IdentityDict JumpReluAutoEncoder SparseAutoencoder Transcoder calibrate "
    "expand_or_convert fold_decoder_norm_ gradient_pursuit leave_one_out load_dictionary save_dictionary",
    "evaluation": "Candidate EvaluationConfig evaluate_activations evaluate_dictionaries",
    "evaluation.reports": "write_report",
    "interop": "Sae as_custom_sae convert list_pretrained load_from_hub load_many push_to_hub write_dictionary",
    "_model_set": "ModelSet",
    "models": "TracedModel load_model",
    "session": "Session load_session",
    "sites": "Site",
    "sweeps": "SweepConfig benchmark_synthetic run_sweep",
    "trainers": "BatchTopKTrainer SAETrainer TopKTrainer TrainerTopK",
    "training": "trainSAE",
}

__all__ = [
    "ActivationBuffer", "ActivationCache", "ActivationMixture", "AutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
    "BatchTopKTrainer", "Candidate", "ContextStream", "CrossLayerTranscoder", "Crosscoder", "Dictionary",
    "DictionaryInfo", "EvaluationConfig", "GatedAutoEncoder", "IdentityDict", "JumpReluAutoEncoder", "ModelSet",
    "SAETrainer", "Sae", "Session", "Site", "SparseAutoencoder", "SweepConfig", "TokenFilter", "TopKTrainer",
    "TracedModel", "TrainerTopK", "Transcoder", "__version__", "as_custom_sae", "benchmark_synthetic", "calibrate",
    "convert", "evaluate", "evaluate_activations", "evaluate_dictionaries", "expand_or_convert", "fold_decoder_norm_",
    "gradient_pursuit", "leave_one_out", "list_pretrained", "load_dictionary", "load_from_hub", "load_many",
    "load_model", "load_session", "loss_recovered", "pretrained", "push_to_hub", "run_sweep", "save_dictionary",
    "trainSAE", "write_cache", "write_dictionary", "write_report",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(
    __name__, {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()}
)
