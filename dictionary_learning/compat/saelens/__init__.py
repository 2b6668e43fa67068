"""SAELens 3 to 6 by its names: change the import and the model's name, and nothing else.

    from dictionary_learning.compat.saelens import LanguageModelSAERunnerConfig, SAETrainingRunner

Fields count what they count there: windows and warm-ups steps, the buffer batches of prompts. What
has no counterpart is refused, with what to use; docs/migrating.md lists it.
"""

from dictionary_learning.compat.saelens.config import (
    BatchTopKTrainingSAEConfig,
    GatedTrainingSAEConfig,
    JumpReLUTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LoggingConfig,
    MatchingPursuitTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from dictionary_learning.compat.saelens.runner import (
    LanguageModelSAETrainingRunner,
    LMSparseAutoencoderSessionloader,
    SAETrainingRunner,
    language_model_sae_runner,
)

__all__ = [
    "BatchTopKTrainingSAEConfig",
    "GatedTrainingSAEConfig",
    "JumpReLUTrainingSAEConfig",
    "LMSparseAutoencoderSessionloader",
    "LanguageModelSAERunnerConfig",
    "LanguageModelSAETrainingRunner",
    "LoggingConfig",
    "MatchingPursuitTrainingSAEConfig",
    "MatryoshkaBatchTopKTrainingSAEConfig",
    "SAETrainingRunner",
    "StandardTrainingSAEConfig",
    "TopKTrainingSAEConfig",
    "language_model_sae_runner",
]
