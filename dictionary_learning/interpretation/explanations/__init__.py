"""What latents react to, in words, and how well the words hold."""

from dictionary_learning.interpretation.explanations._baseline import Baseline, WordCounts
from dictionary_learning.interpretation.explanations._cost import CostEstimate, estimate_cost
from dictionary_learning.interpretation.explanations._examples import ContextsOfLatents
from dictionary_learning.interpretation.explanations._explain import ExplanationConfig, explain
from dictionary_learning.interpretation.explanations._files import load_explanations, save_explanations
from dictionary_learning.interpretation.explanations._judges import Embedder, Judge
from dictionary_learning.interpretation.explanations._local import LocalEmbedder, LocalJudge
from dictionary_learning.interpretation.explanations._names import embedder_of, judge_of
from dictionary_learning.interpretation.explanations._openai import OpenAIEmbedder, OpenAIJudge
from dictionary_learning.interpretation.explanations._prompts import Prompt
from dictionary_learning.interpretation.explanations._scores import SCORES, Score

__all__ = [
    "SCORES",
    "Baseline",
    "ContextsOfLatents",
    "CostEstimate",
    "Embedder",
    "ExplanationConfig",
    "Judge",
    "LocalEmbedder",
    "LocalJudge",
    "OpenAIEmbedder",
    "OpenAIJudge",
    "Prompt",
    "Score",
    "WordCounts",
    "embedder_of",
    "estimate_cost",
    "explain",
    "judge_of",
    "load_explanations",
    "save_explanations",
]
