"""What explanations will cost, before anything is asked."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dictionary_learning._border import checked
from dictionary_learning.interpretation.explanations._answers import Answers
from dictionary_learning.interpretation.explanations._examples import ContextsOfLatents
from dictionary_learning.interpretation.explanations._explain import (
    ExplanationConfig,
    Material,
    check_scores,
    judges_of,
    materials,
)
from dictionary_learning.interpretation.explanations._judges import Embedder, Judge
from dictionary_learning.interpretation.explanations._parsing import parse_explanation
from dictionary_learning.interpretation.explanations._prompts import Prompt

_CHARACTERS_PER_TOKEN = 3.5
"""Rather few: English text has about 4, and lists of tokens and numbers fewer."""
_TOKENS_PER_MESSAGE = 8
"""What chat templates add."""
_EXPLANATION = "something that is said in a phrase of about twenty words, the usual length of what judges answer here"
_EXPLANATION_TOKENS = 120
"""Of an answer: some judges reason before they explain."""


class CostEstimate(NamedTuple):
    """What is still to be asked, and what that costs."""

    n_latents: int
    """Latents that have examples."""
    n_requests: dict[str, int]
    """Requests to judges by kind, without those that were answered before."""
    prompt_tokens: int
    """About how many: characters / 3.5."""
    answer_tokens: int
    money: float | None
    """In the currency of the prices; None without prices. Embeddings are not counted."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in self.n_requests.items())
        money = "" if self.money is None else f", {self.money:,.2f} in money"
        return (
            f"{self.n_latents:,} latents, {sum(self.n_requests.values()):,} requests ({kinds}), about "
            f"{self.prompt_tokens:,} tokens of questions and {self.answer_tokens:,} of answers{money}"
        )


@checked()
def estimate_cost(
    contexts: ContextsOfLatents,
    latents: Sequence[int],
    judge: Judge,
    *,
    scores: Sequence[str] = ("detection", "fuzzing"),
    scorer: Judge | None = None,
    embedder: Embedder | None = None,
    folder: str | os.PathLike[str] | None = None,
    config: ExplanationConfig | None = None,
    prompt_price: float | None = None,
    answer_price: float | None = None,
) -> CostEstimate:
    """Returns how many requests and tokens `explain` of the same arguments takes, and the money.

    Requests are counted exactly, except where more than a judge refuses. Tokens are estimated from
    characters, and those of answers from what is asked for.

    Args:
        contexts: As in `explain`, like the arguments that follow.
        latents: Which latents.
        judge: Who explains.
        scores: Names in `SCORES`.
        scorer: Who is asked for the scores; by default the judge.
        embedder: Whose vectors the score `embedding` compares.
        folder: Where answers are kept; those there are not asked for again.
        config: How many examples.
        prompt_price: The price of a million tokens of questions.
        answer_price: The price of a million tokens of answers.
    """
    config, scorer = config or ExplanationConfig(), scorer or judge
    check_scores(scores)
    answers = Answers(None if folder is None else Path(folder))
    judges = judges_of(scores, scorer, embedder)
    n_latents, prompt_tokens, answer_tokens = 0, 0, 0
    n_requests = dict.fromkeys(("explain", *scores), 0)
    for material in (one for part in materials(contexts, latents, config) for one in part):
        n_latents += 1
        question = material.explain_prompt()
        for prompt, asked in [(question, judge), *_scoring(material, question, judge, answers, judges, config)]:
            if prompt.key(asked.name) not in answers:
                n_requests[prompt.kind] += 1
                if prompt.kind != "embedding":
                    prompt_tokens += _tokens(prompt)
                    answer_tokens += _answer_tokens(prompt)
    prices = (prompt_price, answer_price)
    money = sum((price or 0.0) * n / 1e6 for price, n in zip(prices, (prompt_tokens, answer_tokens), strict=True))
    return CostEstimate(n_latents, n_requests, prompt_tokens, answer_tokens, None if prices == (None, None) else money)


def _scoring(
    material: Material,
    question: Prompt,
    judge: Judge,
    answers: Answers,
    judges: dict[str, Judge],
    config: ExplanationConfig,
) -> list[tuple[Prompt, Judge]]:
    """Returns the questions that score a latent, and who is asked."""
    key, text = question.key(judge.name), _EXPLANATION
    if key in answers:
        known = parse_explanation(answers.get(key))
        if known is None:
            return []  # an answer that could not be read is not scored
        text = known
    return [(prompt, asked) for name, asked in judges.items() for prompt in material.score_prompts(name, text, config)]


def _tokens(prompt: Prompt) -> int:
    characters = sum(len(message["content"]) for message in prompt.messages)
    return math.ceil(characters / _CHARACTERS_PER_TOKEN) + _TOKENS_PER_MESSAGE * len(prompt.messages)


def _answer_tokens(prompt: Prompt) -> int:
    # "0, " is two tokens
    return _EXPLANATION_TOKENS if prompt.kind == "explain" else 2 * len(prompt.truth) + 1
