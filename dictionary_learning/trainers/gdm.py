"""The address of gated training in dictionary-learning."""

from dictionary_learning.trainers.gated import GatedAutoEncoder, GatedSAETrainer

__all__ = ["GatedAutoEncoder", "GatedSAETrainer"]
