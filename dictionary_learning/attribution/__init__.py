"""What latents do to a model's predictions: their effects, their connections, circuits of them."""

from dictionary_learning.attribution._attribute import attribute
from dictionary_learning.attribution._circuits import (
    Circuit,
    Faithfulness,
    Kept,
    Means,
    circuit,
    faithfulness,
    mean_latents,
)
from dictionary_learning.attribution._edges import Edges, edges
from dictionary_learning.attribution._metrics import Metric, log_probability, logit_difference
from dictionary_learning.attribution._nodes import DictionariesLike, Placed
from dictionary_learning.attribution._records import Attribution, Effects, Method

__all__ = [
    "Attribution",
    "Circuit",
    "DictionariesLike",
    "Edges",
    "Effects",
    "Faithfulness",
    "Kept",
    "Means",
    "Method",
    "Metric",
    "Placed",
    "attribute",
    "circuit",
    "edges",
    "faithfulness",
    "log_probability",
    "logit_difference",
    "mean_latents",
]
