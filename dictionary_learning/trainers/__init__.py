"""Training of dictionaries: one file for each method."""

# last: it registers methods on top of those above
from dictionary_learning import experimental  # noqa: F401  # pyright: ignore[reportUnusedImport]
from dictionary_learning.dictionaries._initialization import geometric_median
from dictionary_learning.dictionaries._named import AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE
from dictionary_learning.trainers._base import TRAINERS, Trainer
from dictionary_learning.trainers._batch import Batch, Loss, StepPart
from dictionary_learning.trainers._components import Component, ScheduledValue, component
from dictionary_learning.trainers._config import OptimizationConfig
from dictionary_learning.trainers._optimizers import OPTIMIZERS
from dictionary_learning.trainers._penalties import PENALTIES, PenaltyConfig
from dictionary_learning.trainers._run_info import RunInfo
from dictionary_learning.trainers._sae_config import TrainerConfig
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._schedules import SCHEDULES
from dictionary_learning.trainers._top_k_family import TopKFamilyConfig, reconstruction_loss
from dictionary_learning.trainers.abs_top_k import AbsTopKTrainer
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.end_to_end import EndToEndTrainer
from dictionary_learning.trainers.gated import GatedSAETrainer
from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer
from dictionary_learning.trainers.group_max import GroupMaxTrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matching_pursuit import MatchingPursuitTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate, TrainerStandard
from dictionary_learning.trainers.top_k import TopKTrainer, TrainerTopK

__all__ = [
    "OPTIMIZERS",
    "PENALTIES",
    "SCHEDULES",
    "TRAINERS",
    "AbsTopKTrainer",
    "AutoEncoderTopK",
    "Batch",
    "BatchTopKSAE",
    "BatchTopKTrainer",
    "Component",
    "EndToEndTrainer",
    "GatedAnnealTrainer",
    "GatedSAETrainer",
    "GroupMaxTrainer",
    "JumpReluTrainer",
    "Loss",
    "MatchingPursuitTrainer",
    "MatryoshkaBatchTopKSAE",
    "MatryoshkaBatchTopKTrainer",
    "OptimizationConfig",
    "PAnnealTrainer",
    "PenaltyConfig",
    "RunInfo",
    "SAETrainer",
    "ScheduledValue",
    "StandardTrainer",
    "StandardTrainerAprilUpdate",
    "StepPart",
    "TopKFamilyConfig",
    "TopKTrainer",
    "Trainer",
    "TrainerConfig",
    "TrainerStandard",
    "TrainerTopK",
    "component",
    "geometric_median",
    "reconstruction_loss",
]
