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
from dictionary_learning.attribution._graph import attribution_graph
from dictionary_learning.attribution._graph_records import AttributionGraph
from dictionary_learning.attribution._influence import Pruned, prune
from dictionary_learning.attribution._metrics import Metric, log_probability, logit_difference
from dictionary_learning.attribution._nodes import DictionariesLike, Placed
from dictionary_learning.attribution._records import Attribution, Effects, Method

__all__ = [
    "Attribution",
    "AttributionGraph",
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
    "Pruned",
    "attribute",
    "attribution_graph",
    "circuit",
    "edges",
    "faithfulness",
    "log_probability",
    "logit_difference",
    "mean_latents",
    "prune",
]
