"""Latents explained by a judge, and the explanations scored."""

import dataclasses
import logging
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dictionary_learning._border import checked
from dictionary_learning.config import BaseConfig, setting
from dictionary_learning.errors import ConfigError
from dictionary_learning.interpretation._records import Explanation
from dictionary_learning.interpretation.explanations._answers import Answers
from dictionary_learning.interpretation.explanations._asking import Asking
from dictionary_learning.interpretation.explanations._baseline import WordCounts
from dictionary_learning.interpretation.explanations._examples import ContextsOfLatents, Division, divide
from dictionary_learning.interpretation.explanations._files import save_explanations
from dictionary_learning.interpretation.explanations._judges import Comparing, Embedder, Judge
from dictionary_learning.interpretation.explanations._parsing import parse_explanation
from dictionary_learning.interpretation.explanations._prompts import Prompt, explain_prompt
from dictionary_learning.interpretation.explanations._scores import SCORES, Answered

logger = logging.getLogger(__name__)

_AT_ONCE = 64
"""Latents whose questions are in memory together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplanationConfig(BaseConfig):
    """How many examples explain a latent, and how many score the explanation."""

    n_shown: int = setting(20, at_least=1)
    """Examples of activity that the judge sees; up to a quarter as many quiet ones are added."""
    n_scored: int = setting(30, at_least=1)
    """Other examples that score, at most; as many quiet ones are added."""
    texts_per_prompt: int = setting(5, at_least=1)
    """Texts in a question of detection and fuzzing; simulation asks about so many in all."""
    seed: int = 0
    """Seed of the choice and the order of examples."""

    @property
    def numbers(self) -> dict[str, int]:
        """How many examples are shown, and how many score."""
        return {"n_shown": self.n_shown, "n_scored": self.n_scored}


class Material(NamedTuple):
    """A latent and its examples."""

    latent: int
    division: Division

    def explain_prompt(self) -> Prompt:
        """Returns the question what it reacts to."""
        active = [window.scaled(self.division.maximum) for window in self.division.shown]
        return explain_prompt(self.latent, active, [window.marked(()) for window in self.division.contrast])

    def score_prompts(self, score: str, explanation: str, config: ExplanationConfig) -> list[Prompt]:
        """Returns the questions of a score, the same at every call."""
        chance = random.Random(f"{config.seed} {self.latent} {score}")
        return SCORES[score].prompts(self.latent, explanation, self.division, chance, config.texts_per_prompt)


@checked()
def explain(
    contexts: ContextsOfLatents,
    latents: Sequence[int],
    judge: Judge,
    *,
    scores: Sequence[str] = ("detection", "fuzzing"),
    scorer: Judge | None = None,
    embedder: Embedder | None = None,
    folder: str | os.PathLike[str] | None = None,
    config: ExplanationConfig | None = None,
) -> dict[int, Explanation]:
    """Returns what latents react to, in the words of a judge, and how well that holds.

    Examples that explain are not used to score. A latent without examples, or whose answer could
    not be read, is left out; what was odd is logged.

    Args:
        contexts: Where the latents are active, such as a dictionary of a `ContextStore`.
        latents: Which latents.
        judge: Who explains, such as `OpenAIJudge(...)` or `Baseline()`.
        scores: Names in `SCORES`: detection, fuzzing, simulation, embedding.
        scorer: Who is asked for the scores; by default the judge.
        embedder: Whose vectors the score `embedding` compares; by default counts of words.
        folder: Keeps every answer in `answers.jsonl`, so that a second call asks only for what is
            missing, and the results in `explanations.json`; None keeps nothing.
        config: How many examples.

    Raises:
        ConfigError: A latent or a score is not known.
        ModelError: The judge cannot be asked. What was answered is kept.
    """
    config, scorer = config or ExplanationConfig(), scorer or judge
    check_scores(scores)
    judges = judges_of(scores, scorer, embedder)
    answers = Answers(None if folder is None else Path(folder))
    asking = Asking(answers)
    made: dict[int, Explanation] = {}
    try:
        for part in materials(contexts, latents, config):
            texts = _explained(asking, judge, part)
            for material, text in texts:
                made[material.latent] = Explanation(text, judge.name, {})
            for name in scores:
                for latent, found in _scored(asking, judges[name], name, texts, config).items():
                    made[latent].scores.update(found)
            if folder is not None:
                save_explanations(folder, {material.latent: made[material.latent] for material, _ in texts})
    finally:
        answers.close()
    _say(asking, len(made), len(latents))
    return made


def materials(
    contexts: ContextsOfLatents, latents: Sequence[int], config: ExplanationConfig
) -> Iterator[list[Material]]:
    """Yields the latents that have examples, some at a time."""
    for start in range(0, len(latents), _AT_ONCE):
        part: list[Material] = []
        for latent in latents[start : start + _AT_ONCE]:
            chance = random.Random(f"{config.seed} {latent}")
            found = contexts.contexts(latent)
            division = divide(found, contexts.window_text, chance, **config.numbers)
            if division.shown:
                part.append(Material(latent, division))
        if part:
            yield part


def check_scores(scores: Sequence[str]) -> None:
    """Raises ConfigError for a score that is not known, or is named twice."""
    for name in scores:
        SCORES[name]
    if len(set(scores)) < len(scores):
        raise ConfigError(f"Got scores={list(scores)!r}, where one is named twice. Name each once.")


def judges_of(scores: Sequence[str], scorer: Judge, embedder: Embedder | None) -> dict[str, Judge]:
    """Returns who is asked for each score."""
    return {name: Comparing(embedder or WordCounts()) if name == "embedding" else scorer for name in scores}


def _explained(asking: Asking, judge: Judge, part: Sequence[Material]) -> list[tuple[Material, str]]:
    texts: list[tuple[Material, str]] = []
    for material, answer in zip(part, asking.ask(judge, [one.explain_prompt() for one in part]), strict=True):
        text = parse_explanation(answer)
        if text is not None:
            texts.append((material, text))
        elif answer:
            asking.odd["explain"] += 1
    return texts


def _scored(
    asking: Asking, judge: Judge, name: str, texts: Sequence[tuple[Material, str]], config: ExplanationConfig
) -> dict[int, dict[str, float]]:
    """Returns the score of each latent, by its name."""
    prompts = [prompt for one, text in texts for prompt in one.score_prompts(name, text, config)]
    answered: dict[int, list[Answered]] = {}
    for prompt, answer in zip(prompts, asking.ask(judge, prompts), strict=True):
        numbers = SCORES[name].read(prompt, answer)
        if numbers is None and answer:
            asking.odd[name] += 1
        answered.setdefault(prompt.latent, []).append(Answered(prompt, numbers))
    return {latent: SCORES[name].result(found) for latent, found in answered.items()}


def _say(asking: Asking, n_made: int, n_latents: int) -> None:
    if asking.odd:
        counts = ", ".join(f"{kind}: {n:,}" for kind, n in sorted(asking.odd.items()))
        logger.warning("Answers that could not be read, and are left out: %s.", counts)
    logger.info("Explained %d of %d latents with %d new answers.", n_made, n_latents, asking.n_asked)
