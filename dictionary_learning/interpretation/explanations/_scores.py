"""How well an explanation holds: what a judge predicts from it, compared with what is so.

Detection and fuzzing: Paulo et al. 2024, https://arxiv.org/abs/2410.13928. Simulation: Bills et al.
2023, "Language models can explain neurons in language models", OpenAI.
"""

import itertools
import math
import random
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from dictionary_learning.config import Registry
from dictionary_learning.interpretation.explanations._examples import Division, Window
from dictionary_learning.interpretation.explanations._parsing import parse_numbers
from dictionary_learning.interpretation.explanations._prompts import Marked, Prompt

_MARKED_FROM = 0.3
"""Tokens with this share of the window's largest activation are marked, as in delphi."""
_LEAST_READ = 0.5
"""A share of answers; where fewer could be read, there is no score."""


class Answered(NamedTuple):
    """A question, and the numbers that were read from the answer; None if none were."""

    prompt: Prompt
    numbers: list[float] | None


@runtime_checkable
class Score(Protocol):
    """A way to score an explanation."""

    def prompts(
        self, latent: int, explanation: str, division: Division, chance: random.Random, texts_per_prompt: int
    ) -> list[Prompt]:
        """Returns what is asked."""
        ...

    def read(self, prompt: Prompt, answer: str) -> list[float] | None:
        """Returns the numbers of an answer; None if it is none that was asked for."""
        ...

    def result(self, answered: Sequence[Answered]) -> dict[str, float]:
        """Returns the score by name; nothing where there is too little to say."""
        ...


SCORES: Registry[Score] = Registry("score")


class _Telling:
    """Answers of 0 or 1 for each text."""

    kind: str

    def read(self, prompt: Prompt, answer: str) -> list[float] | None:
        return parse_numbers(answer, len(prompt.texts), low=0, high=1, whole=True)

    def result(self, answered: Sequence[Answered]) -> dict[str, float]:
        truth, told = _pairs(answered)
        if len(set(truth)) < 2:
            return {}
        return {self.kind: balanced_accuracy(truth, told), f"{self.kind}_f1": f1(truth, told)}

    def _prompts(self, latent: int, explanation: str, texts: list[tuple[Marked, float]], n: int) -> list[Prompt]:
        parts = [texts[start : start + n] for start in range(0, len(texts), n)]
        return [
            Prompt(self.kind, latent, tuple(t for t, _ in part), tuple(one for _, one in part), explanation)
            for part in parts
        ]


class Detection(_Telling):
    """Whether a judge tells windows where the latent is active from quiet ones.

    balanced accuracy = (share of active windows called active + share of quiet called quiet) / 2

    From 0 to 1, higher is better; chance is 0.5. `detection_f1` is F1 for the active windows.
    """

    kind = "detection"

    def prompts(
        self, latent: int, explanation: str, division: Division, chance: random.Random, texts_per_prompt: int
    ) -> list[Prompt]:
        """Returns questions of mixed windows."""
        active = [(window, 1.0) for stratum in division.active for window in stratum]
        texts = [(window.marked(()), one) for window, one in [*active, *((w, 0.0) for w in division.quiet)]]
        chance.shuffle(texts)
        return self._prompts(latent, explanation, texts, texts_per_prompt)


class Fuzzing(_Telling):
    """Whether a judge tells windows with the active tokens marked from those with others marked.

    The same measures as detection; chance is 0.5. Within each quantile, every other window gets
    wrong marks: as many, on tokens where the latent is not active.
    """

    kind = "fuzzing"

    def prompts(
        self, latent: int, explanation: str, division: Division, chance: random.Random, texts_per_prompt: int
    ) -> list[Prompt]:
        """Returns questions of windows with right and wrong marks."""
        texts: list[tuple[Marked, float]] = []
        wrong = chance.random() < 0.5
        for window in (window for stratum in division.active for window in stratum):
            least = _MARKED_FROM * max(window.activations)
            right = [n for n, a in enumerate(window.activations) if a > 0 and a >= least]
            others = [n for n, a in enumerate(window.activations) if a <= 0]
            if right and len(others) >= len(right):
                places = chance.sample(others, len(right)) if wrong else right
                texts.append((window.marked(places), float(not wrong)))
                wrong = not wrong
        chance.shuffle(texts)
        return self._prompts(latent, explanation, texts, texts_per_prompt)


class Simulation:
    """How a judge's predicted activations of each token correlate with the true ones.

    r = Pearson's correlation over all tokens of the windows; the score is max(r, 0).

    From 0 to 1, higher is better; a constant or random prediction has 0. Windows of every quantile
    and quiet ones are half each, one in a question.
    """

    kind = "simulation"

    def prompts(
        self, latent: int, explanation: str, division: Division, chance: random.Random, texts_per_prompt: int
    ) -> list[Prompt]:
        """Returns a question for each of `texts_per_prompt` windows: they cost more than others."""
        turns = itertools.zip_longest(*division.active)
        active = [window for turn in turns for window in turn if window is not None]
        n = (texts_per_prompt + 1) // 2
        windows = [*active[:n], *division.quiet[:n]]
        maximum = max((a for window in windows for a in window.activations), default=0.0)
        return [
            Prompt(self.kind, latent, (window.marked(()),), _tenths(window, maximum), explanation) for window in windows
        ]

    def read(self, prompt: Prompt, answer: str) -> list[float] | None:
        """Returns a number from 0 to 10 for each token."""
        return parse_numbers(answer, len(prompt.truth), low=0, high=10, whole=True)

    def result(self, answered: Sequence[Answered]) -> dict[str, float]:
        """Returns the correlation."""
        truth, told = _pairs(answered)
        r = correlation(truth, told)
        return {} if r is None else {self.kind: max(r, 0.0)}


class Embedding:
    """Whether the explanation is nearer to windows where the latent is active than to quiet ones.

    AUROC = share of (active, quiet) pairs where cos(explanation, active) > cos(explanation, quiet);
    equal ones count half.

    From 0 to 1, higher is better; chance is 0.5.
    """

    kind = "embedding"

    def prompts(
        self, latent: int, explanation: str, division: Division, chance: random.Random, texts_per_prompt: int
    ) -> list[Prompt]:
        """Returns one question with all windows."""
        active = [(window, 1.0) for stratum in division.active for window in stratum]
        texts = [*active, *((window, 0.0) for window in division.quiet)]
        windows = tuple(window.marked(()) for window, _ in texts)
        return [Prompt(self.kind, latent, windows, tuple(one for _, one in texts), explanation)] if texts else []

    def read(self, prompt: Prompt, answer: str) -> list[float] | None:
        """Returns a cosine for each window."""
        return parse_numbers(answer, len(prompt.texts), low=-1.001, high=1.001, whole=False)

    def result(self, answered: Sequence[Answered]) -> dict[str, float]:
        """Returns the AUROC."""
        truth, told = _pairs(answered)
        return {self.kind: auroc(truth, told)} if len(set(truth)) == 2 else {}


for _score in (Detection(), Fuzzing(), Simulation(), Embedding()):
    SCORES.register(_score.kind)(_score)


def balanced_accuracy(truth: Sequence[float], told: Sequence[float]) -> float:
    """Returns the mean over both classes of the share that is told right."""
    shares = [[float(t == one) for t, one in zip(told, truth, strict=True) if one == which] for which in (0.0, 1.0)]
    return sum(sum(share) / len(share) for share in shares) / len(shares)


def f1(truth: Sequence[float], told: Sequence[float]) -> float:
    """Returns 2 TP / (2 TP + FP + FN) of what is 1."""
    both = sum(t * one for t, one in zip(told, truth, strict=True))
    return 2 * both / max(sum(truth) + sum(told), 1.0)


def correlation(truth: Sequence[float], told: Sequence[float]) -> float | None:
    """Returns Pearson's correlation; 0 if what is told is constant, None if the truth is."""
    if len(truth) < 2 or len(set(truth)) < 2:
        return None
    if len(set(told)) < 2:
        return 0.0
    means = sum(truth) / len(truth), sum(told) / len(told)
    left, right = [t - means[0] for t in truth], [t - means[1] for t in told]
    return sum(a * b for a, b in zip(left, right, strict=True)) / math.sqrt(
        sum(a * a for a in left) * sum(b * b for b in right)
    )


def auroc(truth: Sequence[float], told: Sequence[float]) -> float:
    """Returns the share of pairs of a 1 and a 0 where the 1 has the larger value; ties half."""
    ones = [t for t, one in zip(told, truth, strict=True) if one]
    zeros = [t for t, one in zip(told, truth, strict=True) if not one]
    return sum((a > b) + (a == b) / 2 for a in ones for b in zeros) / (len(ones) * len(zeros))


def _pairs(answered: Sequence[Answered]) -> tuple[list[float], list[float]]:
    """Returns truth and answers of what was read; nothing where that is too little."""
    read = [(one.prompt.truth, one.numbers) for one in answered if one.numbers is not None]
    if len(read) < _LEAST_READ * len(answered):
        return [], []
    return [t for truth, _ in read for t in truth], [n for _, numbers in read for n in numbers]


def _tenths(window: Window, maximum: float) -> tuple[float, ...]:
    return tuple(10 * max(a, 0.0) / maximum if maximum > 0 else 0.0 for a in window.activations)
