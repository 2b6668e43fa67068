"""SAELens 3 to 6 by its names: change the import and the model's name, and nothing else.

    from dictionary_learning.compat.saelens import SAE, SAETrainingRunner

Fields count what they count there: windows and warm-ups steps, the buffer batches of prompts. What
has no counterpart is refused, with what to use; docs/migrating.md lists it.
"""

from dictionary_learning.compat._no_counterpart import refusing
from dictionary_learning.compat.saelens._names import NAMES
from dictionary_learning.compat.saelens._sae_config import SAEConfig, SAEMetadata
from dictionary_learning.compat.saelens.config import (
    AbsTopKTrainingSAEConfig,
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    MatchingPursuitTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
    TrainingSAEConfig,
)
from dictionary_learning.compat.saelens.runner import (
    LanguageModelSAETrainingRunner,
    LMSparseAutoencoderSessionloader,
    SAETrainingRunner,
    language_model_sae_runner,
)
from dictionary_learning.compat.saelens.sae import SAE

__all__ = [
    "SAE",
    "AbsTopKTrainingSAEConfig",
    "BatchTopKTrainingSAEConfig",
    "GatedTrainingSAEConfig",
    "JumpReLUTrainingSAEConfig",
    "LMSparseAutoencoderSessionloader",
    "LanguageModelSAERunnerConfig",
    "LanguageModelSAETrainingRunner",
    "LoggingConfig",
    "MatchingPursuitTrainingSAEConfig",
    "MatryoshkaBatchTopKTrainingSAEConfig",
    "SAEConfig",
    "SAEMetadata",
    "SAETrainingRunner",
    "StandardTrainingSAEConfig",
    "TopKTrainingSAEConfig",
    "TrainingSAEConfig",
    "language_model_sae_runner",
]

__getattr__ = refusing(__name__, "SAELens", NAMES)
