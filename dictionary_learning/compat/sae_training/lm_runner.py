"""The runner of mats_sae_training."""

from dictionary_learning.compat.saelens.runner import language_model_sae_runner as language_model_sae_runner
