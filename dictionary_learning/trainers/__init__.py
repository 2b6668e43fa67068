"""How dictionaries are learned: one file for each method."""

from dictionary_learning.dictionaries.initialization import geometric_median
from dictionary_learning.dictionaries.named import AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.abs_top_k import AbsTopKTrainer
from dictionary_learning.trainers.base import TRAINERS, SAETrainer, trainer_of
from dictionary_learning.trainers.batch import Batch, Loss
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.coder import CoderTrainer
from dictionary_learning.trainers.end_to_end import EndToEndTrainer
from dictionary_learning.trainers.gated_anneal import GatedAnnealTrainer
from dictionary_learning.trainers.gdm import GatedSAETrainer
from dictionary_learning.trainers.group_max import GroupMaxTrainer
from dictionary_learning.trainers.jumprelu import JumpReluTrainer
from dictionary_learning.trainers.matching_pursuit import MatchingPursuitTrainer
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
from dictionary_learning.trainers.optimizers import OPTIMIZERS
from dictionary_learning.trainers.p_anneal import PAnnealTrainer
from dictionary_learning.trainers.penalties import PENALTIES
from dictionary_learning.trainers.schedules import SCHEDULES
from dictionary_learning.trainers.standard import StandardTrainer, StandardTrainerAprilUpdate, TrainerStandard
from dictionary_learning.trainers.temporal import TemporalTrainer
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
    "CoderTrainer",
    "EndToEndTrainer",
    "GatedAnnealTrainer",
    "GatedSAETrainer",
    "GroupMaxTrainer",
    "JumpReluTrainer",
    "Loss",
    "MatchingPursuitTrainer",
    "MatryoshkaBatchTopKSAE",
    "MatryoshkaBatchTopKTrainer",
    "PAnnealTrainer",
    "SAETrainer",
    "StandardTrainer",
    "StandardTrainerAprilUpdate",
    "TemporalTrainer",
    "TopKTrainer",
    "TrainerStandard",
    "TrainerTopK",
    "geometric_median",
    "trainer_of",
]
