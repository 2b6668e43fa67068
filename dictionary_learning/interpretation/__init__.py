"""What latents mean: the contexts where they are active, their effects, their names."""

from dictionary_learning.interpretation._collecting import collect_contexts
from dictionary_learning.interpretation._records import (
    Example,
    Explanation,
    LatentContexts,
    LatentStatistics,
    Neighbors,
    TokenEffects,
)
from dictionary_learning.interpretation._store import ContextStore, DictionaryContexts

__all__ = [
    "ContextStore",
    "DictionaryContexts",
    "Example",
    "Explanation",
    "LatentContexts",
    "LatentStatistics",
    "Neighbors",
    "TokenEffects",
    "collect_contexts",
]
