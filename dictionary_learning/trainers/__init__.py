"""How dictionaries are learned: one file for each method."""

from dictionary_learning.dictionaries.initialization import geometric_median
from dictionary_learning.dictionaries.named import AutoEncoderTopK, BatchTopKSAE
from dictionary_learning.trainers.base import TRAINERS, Loss, SAETrainer
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
from dictionary_learning.trainers.top_k import TopKTrainer, TrainerTopK

__all__ = [
    "TRAINERS",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "BatchTopKTrainer",
    "Loss",
    "SAETrainer",
    "TopKTrainer",
    "TrainerTopK",
    "geometric_median",
]
