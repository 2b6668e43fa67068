"""What latents mean: the contexts where they are active, their effects, their names."""

from dictionary_learning.interpretation._ablations import AblationEffects, ablation_effects
from dictionary_learning.interpretation._coactivation import Coactivation, coactivation
from dictionary_learning.interpretation._collecting import collect_contexts
from dictionary_learning.interpretation._effects import logit_lens
from dictionary_learning.interpretation._neighbors import latent_map, nearest_latents
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
    "AblationEffects",
    "AnswerToken",
    "Coactivation",
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
    "ablation_effects",
    "coactivation",
    "collect_contexts",
    "latent_map",
    "latent_view",
    "logit_lens",
    "nearest_latents",
    "show_tokens",
    "test_prompt",
    "token_predictions",
]
