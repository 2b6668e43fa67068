"""Who answers: a judge for questions, an embedder for distances."""

import json
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.interpretation.explanations._prompts import Prompt


@runtime_checkable
class Judge(Protocol):
    """Whoever answers questions about latents.

    `prompt.messages` is the question as a chat. A judge without a model reads `prompt.texts`.
    """

    name: str
    """Model and settings: answers of another name are asked for again."""
    batch_size: int
    """Questions that are answered together."""
    n_parallel: int
    """Batches that are asked for at once, each in a thread."""

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """Returns an answer to each question."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Whatever turns texts into vectors."""

    name: str
    n_parallel: int

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """Returns a vector of each text."""
        ...


class Comparing:
    """A judge that answers with the cosine of the explanation and each text.

    Args:
        embedder: Whose vectors are compared.
    """

    batch_size = 1

    def __init__(self, embedder: Embedder):
        self.embedder, self.name, self.n_parallel = embedder, embedder.name, embedder.n_parallel

    def complete(self, prompts: Sequence[Prompt]) -> list[str]:
        """Returns lists of cosines."""
        return [json.dumps(self._cosines(prompt)) for prompt in prompts]

    def _cosines(self, prompt: Prompt) -> list[float]:
        texts = ["".join(text.tokens) for text in prompt.texts]
        vectors = self.embedder.embed([prompt.explanation, *texts]).double()
        unit = torch.nn.functional.normalize(vectors, dim=-1)
        return [round(cosine, 6) for cosine in (unit[1:] @ unit[0]).nan_to_num().tolist()]
