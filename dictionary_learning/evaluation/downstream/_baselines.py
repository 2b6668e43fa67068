"""What scores are compared with: dictionaries without training, and principal components."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import AutoEncoderTopK
from dictionary_learning.evaluation._candidates import PlacedCandidate
from dictionary_learning.evaluation._splices import inputs_of
from dictionary_learning.evaluation.downstream._pooling import TextReader
from dictionary_learning.evaluation.downstream._rows import latents_of
from dictionary_learning.latents import l0

_SAMPLE = 64
"""Texts from which the L0 of dictionaries and the mean activation are measured."""


@torch.no_grad()
def random_dictionaries(
    reader: TextReader, placed: Sequence[PlacedCandidate], texts: Sequence[str], seed: int
) -> list[PlacedCandidate]:
    """Returns for each dictionary a random one of its shape, which keeps as many latents.

    Its directions are random and of unit norm, its encoder is its decoder's transpose, and its
    center the mean activation.
    """
    sums = [0.0 for _ in placed]
    totals: list[Tensor | float] = [0.0 for _ in placed]
    n_tokens = 0
    for batch in reader.stream(list(texts[:_SAMPLE])):
        n = int(batch.lengths.sum())
        n_tokens += n
        for number, one in enumerate(placed):
            x = inputs_of(one, batch.values, one.reads)
            made = one.dictionary.reconstruct_contexts(x, batch.lengths.to(one.dictionary.device))
            sums[number] += float(l0(made.latents)) * n
            totals[number] = totals[number] + x.float().sum(0)
    found: list[PlacedCandidate] = []
    for number, one in enumerate(placed):
        k = min(max(1, round(sums[number] / n_tokens)), one.dictionary.dict_size)
        mean = totals[number] / n_tokens
        assert isinstance(mean, Tensor)
        made = random_dictionary(mean, one.dictionary.dict_size, k, seed + number)
        found.append(PlacedCandidate(_name(one, placed), made.to(one.dictionary.device), one.reads, one.reads))
    return found


@torch.no_grad()
def random_like(
    one: PlacedCandidate, x: Float[Tensor, "n dim"], seed: int, placed: Sequence[PlacedCandidate]
) -> PlacedCandidate:
    """Returns a random dictionary of one's shape, and of its L0 on these activations."""
    k = max(1, round(float(l0(latents_of(one, x)))))
    made = random_dictionary(x.mean(0), one.dictionary.dict_size, min(k, one.dictionary.dict_size), seed)
    return PlacedCandidate(_name(one, placed), made.to(one.dictionary.device), one.reads, one.writes)


def _name(one: PlacedCandidate, placed: Sequence[PlacedCandidate]) -> str:
    name = f"random like {one.name}"
    while name in {other.name for other in placed}:  # somebody may call a dictionary so
        name = f"a {name}"
    return name


def random_dictionary(center: Float[Tensor, "dim"], dict_size: int, k: int, seed: int) -> AutoEncoderTopK:
    """Returns a dictionary of random directions around a center."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(dict_size, len(center), generator=generator)
    made = AutoEncoderTopK(len(center), dict_size, k)
    with torch.no_grad():
        rows = torch.nn.functional.normalize(rows, dim=1)
        made.W_dec.copy_(rows)
        made.W_enc.copy_(rows)
        assert made.b_dec is not None
        made.b_dec.copy_(center)
        if made.b_enc is not None:
            made.b_enc.zero_()
    return made.requires_grad_(False)


class Components(NamedTuple):
    """Principal components of rows: all that are more than rounding, the largest first."""

    mean: Float[np.ndarray, "dim"]
    axes: Float[np.ndarray, "components dim"]

    def coordinates(self, x: Float[np.ndarray, "n dim"]) -> Float[np.ndarray, "n components"]:
        """Returns where rows lie along the components."""
        return (x - self.mean) @ self.axes.T


def principal_components(x: Float[np.ndarray, "n dim"]) -> Components:
    """Returns the principal components of rows."""
    mean = x.mean(0)
    _, sizes, axes = np.linalg.svd(x - mean, full_matrices=False)
    return Components(mean, axes[sizes > 1e-9 * max(float(sizes[0]), 1e-300)])
