"""Latents whose meaning is known, and judges that count what they are asked."""

import random
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dictionary_learning.interpretation import Example, LatentContexts
from dictionary_learning.interpretation.explanations import Prompt

WINDOW, N_WORDS = 12, 40


class PlantedContexts:
    """Latent i < 20 is active on the word i, more on later places; latent 20 on random tokens; 21 never.

    A token's text is its word with a space before, so texts are words between spaces.
    """

    def __init__(self, n_quantiles: int = 4, per_quantile: int = 8, n_quiet: int = 40, seed: int = 0):
        self.shape, self.n_quiet, self.seed = (n_quantiles, per_quantile), n_quiet, seed

    def token_text(self, ids: Tensor) -> Sequence[str]:
        return [f" word{int(i)}" for i in ids]

    def window_text(self, ids: Tensor) -> Sequence[str]:
        return self.token_text(ids)

    def contexts(self, latent: int) -> LatentContexts:
        chance = random.Random(f"{self.seed} {latent}")
        n_quantiles, per_quantile = self.shape
        if latent == 21:
            return LatentContexts((), (), ())
        active = [self._window(latent, chance, n) for n in range(16 + n_quantiles * per_quantile)]
        active.sort(key=lambda e: -float(e.activations.max()))
        top, rest = active[:16], active[16:]
        quantiles = tuple(tuple(rest[n * per_quantile : (n + 1) * per_quantile]) for n in range(n_quantiles))
        quiet = tuple(self._quiet(latent, chance, n) for n in range(self.n_quiet))
        return LatentContexts(tuple(top), quantiles, quiet)

    def _words(self, latent: int, chance: random.Random) -> list[int]:
        return [chance.choice([w for w in range(N_WORDS) if w != latent]) for _ in range(WINDOW)]

    def _window(self, latent: int, chance: random.Random, n: int) -> Example:
        words, place = self._words(latent, chance), chance.randrange(WINDOW)
        if latent != 20:
            words[place] = latent
        activations = torch.zeros(WINDOW)
        activations[place] = 1 + 9 * chance.random()
        return Example(torch.tensor(words), activations, place, n, 100 + place)

    def _quiet(self, latent: int, chance: random.Random, n: int) -> Example:
        return Example(torch.tensor(self._words(latent, chance)), torch.zeros(WINDOW), 3, 1000 + n, 50)


class Counting:
    """A judge that answers by a function, and keeps what it was asked."""

    def __init__(
        self, answer: Callable[[Prompt], str], name: str = "counting", batch_size: int = 1, n_parallel: int = 3
    ):
        self.answer, self.name, self.batch_size, self.n_parallel = answer, name, batch_size, n_parallel
        self.asked: list[Prompt] = []
        self.running = self.most_running = 0
        self._lock = threading.Lock()

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        with self._lock:
            self.asked += prompts
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            return [self.answer(prompt) for prompt in prompts]
        finally:
            with self._lock:
                self.running -= 1


def right(prompt: Prompt) -> str:
    """Returns the right answer: what a perfect judge would say."""
    if prompt.kind == "explain":
        return f"I think.\nEXPLANATION: the word{prompt.latent}"
    return str([round(one) for one in prompt.truth])
