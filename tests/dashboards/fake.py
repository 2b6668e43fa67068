"""Pages of dictionaries that never were, with texts that want to do harm."""

from collections.abc import Sequence

import torch

from dictionary_learning.dashboards import DictionaryPage
from dictionary_learning.interpretation import (
    Example,
    Explanation,
    LatentContexts,
    LatentStatistics,
    Neighbors,
    TokenEffects,
)

EVIL = "<img src=x onerror=document.title='harm'>"
CLOSING = "</script><script>document.title='harm'</script>"
VOCABULARY = [EVIL, CLOSING, "\n", "\t", " the", "of", " Union", "<b>bold</b>", "é\u2028", "\"'`&amp;", ""]
VOCABULARY += [f" word{i}" for i in range(89)]
WINDOW, BINS = 48, 12


def token_text(ids: Sequence[int]) -> list[str]:
    """Returns the texts of ids."""
    return [VOCABULARY[i] for i in ids]


def page(name: str = "top_k-32", size: int = 100, seed: int = 0, **given) -> DictionaryPage:
    """Returns a page in which latent i is most active on token i % 100 and latent 3 is dead."""
    generator = torch.Generator().manual_seed(seed)

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(11, len(VOCABULARY), shape, generator=generator)  # words only

    density = torch.rand(size, generator=generator) ** 3 * 0.1 + 1e-5
    maximum = 1 + 9 * torch.rand(size, generator=generator)
    maximum[0], density[0] = 20.0, 0.5
    histogram = torch.randint(1, 500, (size, BINS), generator=generator)
    if size > 3:
        density[3], maximum[3], histogram[3] = 0, 0, 0
    effects = TokenEffects(
        integers(size, 6), 2 * torch.rand(size, 6, generator=generator).sort(descending=True).values,
        integers(size, 6), -2 * torch.rand(size, 6, generator=generator),
        torch.randint(50, (size, BINS), generator=generator), -torch.ones(size), torch.ones(size),
    )  # fmt: skip
    facts = {
        "name": name,
        "site": "model.layers.15:out",
        "kind": "AutoEncoderTopK, k 32",
        "dict_size": size,
        "statistics": LatentStatistics(200_000, density, maximum / 2, maximum, histogram),
        "contexts": lambda latent: contexts(latent, float(maximum[latent])),
        "token_text": token_text,
        "effects": effects,
        "neighbors": Neighbors((torch.arange(size)[:, None] + torch.arange(1, 6)) % size, torch.rand(size, 5)),
        "map": torch.randn(size, 2, generator=generator),
        "explanations": {
            1: [Explanation(f"about {EVIL}", "a baseline", {"detection": 0.9, "fuzzing": 0.5})],
            2: [Explanation("speeches of presidents", "a baseline", {"detection": 0.25})],
        },
    }
    return DictionaryPage(**{**facts, **given})


def contexts(latent: int, maximum: float) -> LatentContexts:
    """Returns contexts in which the value of an example falls with its place."""
    if maximum == 0:
        return LatentContexts((), (), (_example(latent, 0.0, 0),))
    top = tuple(_example(latent, maximum * (1 - i / 20), i) for i in range(10))
    quantiles = tuple(tuple(_example(latent, maximum * (0.9 - q / 5), 20 + i) for i in range(3)) for q in range(4))
    return LatentContexts(top, quantiles, (_example(latent, 0.0, 99),))


def _example(latent: int, value: float, document: int) -> Example:
    ids = torch.arange(WINDOW) + latent + document
    peak = WINDOW // 2
    ids[peak] = latent
    activations = torch.zeros(WINDOW)
    activations[peak], activations[peak + 1] = value, value / 2
    return Example(ids % len(VOCABULARY), activations, peak, document, 7 * document)
