"""Facts of latents whose meaning is known."""

import torch

from dictionary_learning.exports import LatentFacts
from dictionary_learning.interpretation import Explanation, LatentStatistics, Neighbors, TokenEffects
from tests.interpretation.planted import PlantedContexts

SIZE, DIM, BINS = 22, 8, 20


def statistics() -> LatentStatistics:
    """Returns figures of 22 latents, of which the last was never active."""
    generator = torch.Generator().manual_seed(0)
    histogram = torch.randint(0, 50, (SIZE, BINS), generator=generator)
    histogram[-1] = 0
    density = histogram.sum(1) / 10_000
    maximum = torch.full((SIZE,), 10.0)
    maximum[-1] = 0
    return LatentStatistics(10_000, density, maximum / 2, maximum, histogram, torch.full((SIZE,), 16.0))


def facts(**changes) -> LatentFacts:
    """Returns facts with everything."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(SIZE, 10, generator=generator).sort(descending=True).values
    ids = torch.randint(0, 40, (SIZE, 10), generator=generator)
    counts = torch.randint(0, 9, (SIZE, 7), generator=generator)
    effects = TokenEffects(
        ids, logits, ids.flip(1), -logits, counts, torch.full((SIZE,), -3.0), torch.full((SIZE,), 4.0)
    )
    neighbors = Neighbors(
        torch.randint(0, SIZE, (SIZE, 3), generator=generator), torch.rand(SIZE, 3, generator=generator)
    )
    explanations = {3: [Explanation("word3 <b>&", "baseline", {"detection": 0.75}), Explanation("x" * 600, "m", {})]}
    given = {
        "contexts": PlantedContexts(), "statistics": statistics(), "effects": effects, "neighbors": neighbors,
        "explanations": explanations, "directions": torch.randn(SIZE, DIM, generator=generator),
        "name": "top_k", "site": "model.layers.5", "model": "tiny", "data": "texts",
    }  # fmt: skip
    return LatentFacts(**{**given, **changes})
