"""The published settings of temporal dictionaries."""

from typing import Any

from dictionary_learning.experimental.temporal._trainer import TemporalTrainer
from dictionary_learning.trainers.recipes import RECIPES


@RECIPES.register("lubana_2025")
def lubana_2025(**changes: Any) -> TemporalTrainer.Config:
    """Returns the settings of the published code, except warm-up and weight decay.

    Lubana et al. 2025, https://arxiv.org/abs/2511.01836. The k is that for Gemma 2 2B.
    """
    settings = {"expansion_factor": 4, "k": 192, "bottleneck_factor": 1, "normalize": "unit_mean_square"}
    optimizer = {"lr": 1e-3, "attention_lr_factor": 1.0, "schedule": "constant"}
    return TemporalTrainer.Config.from_dict({**settings, **optimizer, **changes})
