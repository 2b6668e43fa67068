"""A judge and an embedder without a model: what a score has to beat."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.interpretation.explanations._prompts import Prompt

_START = "tokens: "
_N_TOKENS = 8
_PRIOR = 0.5
"""Counts that each token has beforehand, on both sides."""
_WORD = re.compile(r"\w+")
_LEAST_WORD = 3
"""Characters; shorter words of an explanation stand everywhere."""
_HASHES = 1 << 12


class Baseline:
    """Explains a latent by its most characteristic tokens; predicts it where one of them stands.

    z = (log odds of a token among active ones - among others) / standard error

    with a prior count of 0.5; those of the largest z > 0 are named (Monroe et al. 2008,
    "Fightin' Words"). It scores the explanations of others too, by their words. It sees neither
    order nor meaning.
    """

    name = "baseline"
    batch_size = 64
    n_parallel = 1

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """Returns an answer to each question, in the form that is asked for."""
        return [_explain(prompt) if prompt.kind == "explain" else _predict(prompt) for prompt in prompts]


class WordCounts:
    """An embedder of word counts, without a model."""

    name = "baseline"
    n_parallel = 1

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """Returns the square roots of counts of words, by a hash of each word."""
        vectors = torch.zeros(len(texts), _HASHES)
        for row, text in zip(vectors, texts, strict=True):
            for word, n in Counter(_WORD.findall(text.lower())).items():
                # Python's own hash differs from one process to the next
                row[sum(ord(c) * 31**i for i, c in enumerate(word[:32])) % _HASHES] += math.sqrt(n)
        return vectors


def _explain(prompt: Prompt) -> str:
    inside: Counter[str] = Counter()
    outside: Counter[str] = Counter()
    for text in prompt.texts:
        for token, mark in zip(text.tokens, text.marks, strict=True):
            (inside if mark else outside)[_form(token)] += 1
    for counts in (inside, outside):
        del counts[""]
    z = {token: _z(token, inside, outside) for token in inside}
    best = sorted((token for token in z if z[token] > 0), key=lambda token: (-z[token], token))[:_N_TOKENS]
    return f"EXPLANATION: {_START}{json.dumps(best, ensure_ascii=False)}"


def _z(token: str, inside: Counter[str], outside: Counter[str]) -> float:
    n_kinds = len(inside | outside)
    odds: list[float] = []
    variance = 0.0
    for counts in (inside, outside):
        own = counts[token] + _PRIOR
        rest = sum(counts.values()) + _PRIOR * n_kinds - own
        odds.append(math.log(own / rest) if rest > 0 else math.inf)
        variance += 1 / own
    difference = odds[0] - odds[1]
    return 0.0 if math.isnan(difference) else difference / math.sqrt(variance)


def _predict(prompt: Prompt) -> str:
    named = _named(prompt.explanation)
    hits = [[_form(token) in named for token in text.tokens] for text in prompt.texts]
    if prompt.kind == "detection":
        return json.dumps([int(any(hit)) for hit in hits])
    if prompt.kind == "simulation":
        return json.dumps([10 * hit for hit in hits[0]])
    shares: list[int] = []
    for text, hit in zip(prompt.texts, hits, strict=True):
        marked = [one for one, mark in zip(hit, text.marks, strict=True) if mark]
        shares.append(int(2 * sum(marked) >= len(marked)))
    return json.dumps(shares)


def _named(explanation: str) -> set[str]:
    """Returns the tokens that a baseline's explanation names, or the words of another."""
    if explanation.startswith(_START):
        found = re.findall(r'"((?:[^"\\]|\\.)*)"', explanation)  # also of a list that was cut
        return {json.loads(f'"{token}"') for token in found}
    return {word for word in _WORD.findall(explanation.lower()) if len(word) >= _LEAST_WORD}


def _form(token: str) -> str:
    return token.strip().lower()
