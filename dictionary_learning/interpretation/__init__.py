"""What latents mean: the contexts where they are active, their effects, their names."""

from dictionary_learning.interpretation._collecting import collect_contexts
from dictionary_learning.interpretation._predictions import (
    AnswerToken,
    PromptTest,
    TokenPredictions,
    latent_view,
    test_prompt,
    token_predictions,
)
from dictionary_learning.interpretation._records import (
    Example,
    Explanation,
    LatentContexts,
    LatentStatistics,
    Neighbors,
    TokenEffects,
)
from dictionary_learning.interpretation._store import ContextStore, DictionaryContexts
from dictionary_learning.interpretation._token_views import TokenView, show_tokens

__all__ = [
    "AnswerToken",
    "ContextStore",
    "DictionaryContexts",
    "Example",
    "Explanation",
    "LatentContexts",
    "LatentStatistics",
    "Neighbors",
    "PromptTest",
    "TokenEffects",
    "TokenPredictions",
    "TokenView",
    "collect_contexts",
    "latent_view",
    "show_tokens",
    "test_prompt",
    "token_predictions",
]
