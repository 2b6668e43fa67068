"""What latents mean: the contexts where they are active, their effects, their names."""

from dictionary_learning.interpretation._records import (
    Example,
    Explanation,
    LatentContexts,
    LatentStatistics,
    Neighbors,
    TokenEffects,
)

__all__ = ["Example", "Explanation", "LatentContexts", "LatentStatistics", "Neighbors", "TokenEffects"]
