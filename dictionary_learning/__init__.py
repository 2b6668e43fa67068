"""Dictionary learning on neural-network activations.

Activations come from an `ActivationBuffer`, dictionaries are trained by `trainSAE`, and `evaluate_dictionaries` grafts
them back into the model and measures what is lost.
"""

from dictionary_learning.activations.cache import ActivationCache, write_cache
from dictionary_learning.activations.filters import TokenFilter
from dictionary_learning.activations.mixture import ActivationMixture
from dictionary_learning.buffer import ActivationBuffer
from dictionary_learning.compat.loading import pretrained
from dictionary_learning.contexts import ContextStream
from dictionary_learning.dictionaries import (
    AutoEncoder,
    AutoEncoderTopK,
    BatchTopKSAE,
    Crosscoder,
    CrossLayerTranscoder,
    Dictionary,
    DictionaryInfo,
    GatedAutoEncoder,
    IdentityDict,
    JumpReluAutoEncoder,
    SparseAutoencoder,
    Transcoder,
    calibrate,
    expand_or_convert,
    fold_decoder_norm_,
    gradient_pursuit,
    load_dictionary,
    save_dictionary,
)
from dictionary_learning.evaluation import Candidate, EvaluationConfig, evaluate, evaluate_dictionaries, loss_recovered
from dictionary_learning.evaluation.reports import write_report
from dictionary_learning.interop import (
    Sae,
    as_custom_sae,
    convert,
    list_pretrained,
    load_from_hub,
    load_many,
    push_to_hub,
    write_dictionary,
)
from dictionary_learning.model_set import ModelSet
from dictionary_learning.models import TracedModel, load_model
from dictionary_learning.sites import Site
from dictionary_learning.trainers import BatchTopKTrainer, SAETrainer, TopKTrainer, TrainerTopK
from dictionary_learning.training import trainSAE

__version__ = "1.0.0.dev0"

__all__ = [
    "ActivationBuffer",
    "ActivationCache",
    "ActivationMixture",
    "AutoEncoder",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "BatchTopKTrainer",
    "Candidate",
    "ContextStream",
    "CrossLayerTranscoder",
    "Crosscoder",
    "Dictionary",
    "DictionaryInfo",
    "EvaluationConfig",
    "GatedAutoEncoder",
    "IdentityDict",
    "JumpReluAutoEncoder",
    "ModelSet",
    "SAETrainer",
    "Sae",
    "Site",
    "SparseAutoencoder",
    "TokenFilter",
    "TopKTrainer",
    "TracedModel",
    "TrainerTopK",
    "Transcoder",
    "__version__",
    "as_custom_sae",
    "calibrate",
    "convert",
    "evaluate",
    "evaluate_dictionaries",
    "expand_or_convert",
    "fold_decoder_norm_",
    "gradient_pursuit",
    "list_pretrained",
    "load_dictionary",
    "load_from_hub",
    "load_many",
    "load_model",
    "loss_recovered",
    "pretrained",
    "push_to_hub",
    "save_dictionary",
    "trainSAE",
    "write_cache",
    "write_dictionary",
    "write_report",
]
