"""Texts in terms of latents that can be taken out of their activations.

A text is the mean over its tokens, so that what latents add to it is linear: without the latents S
of an autoencoder, and with the part that it does not explain left as it is, the mean activation is

    x - sum over i in S of mean f_i * d_i
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dictionary_learning.evaluation._candidates import PlacedCandidate
from dictionary_learning.evaluation.downstream._baselines import principal_components, random_dictionaries
from dictionary_learning.evaluation.downstream._directions import directions_of
from dictionary_learning.evaluation.downstream._pooling import TextReader, pool_texts
from dictionary_learning.evaluation.downstream._records import Role


class Coded(NamedTuple):
    """A dictionary's view of texts."""

    name: str
    role: Role
    x: Float[np.ndarray, "texts dim"]
    latents: Float[np.ndarray, "texts dict_size"]
    decoder: Float[np.ndarray, "dict_size dim"]

    def without(self, latents: Int[np.ndarray, "m"]) -> Float[np.ndarray, "texts dim"]:
        """Returns the activations without some latents."""
        return self.x - self.latents[:, latents] @ self.decoder[latents]


def coded_texts(
    reader: TextReader, placed: Sequence[PlacedCandidate], texts: Sequence[str], n_train: int, random: bool, seed: int
) -> list[Coded]:
    """Returns the views of all dictionaries, each with its baselines before it."""
    others = random_dictionaries(reader, placed, texts, seed) if random else []
    pooled = pool_texts(reader, [*placed, *others], texts, "mean")
    found: list[Coded] = []
    for reads, rows in pooled.inputs.items():
        x = rows.double().numpy()
        if random:
            found.append(
                _components(x, n_train, "" if len(pooled.inputs) == 1 else f" at {', '.join(map(str, reads))}")
            )
        for one in (each for each in (*others, *placed) if each.reads == reads):
            role: Role = "random" if one in others else "dictionary"
            decoder = directions_of(one.dictionary).double().numpy()
            found.append(Coded(one.name, role, x, pooled.latents[one.name].double().numpy(), decoder))
    return found


def _components(x: np.ndarray, n_train: int, at: str) -> Coded:
    found = principal_components(x[:n_train])
    return Coded(f"PCA{at}", "pca", x, found.coordinates(x), found.axes)


def effects(
    coded: Coded, weight: Float[np.ndarray, "dim"], rows: Int[np.ndarray, "n"], truth: np.ndarray, signed: bool
) -> Float[np.ndarray, "dict_size"]:
    """Returns how much each latent moves a probe between the classes.

    (mean of the class - mean of the others) <d_i, w>: with `signed` of latents that are larger on
    the class, else in absolute value.
    """
    difference = coded.latents[rows[truth]].mean(0) - coded.latents[rows[~truth]].mean(0)
    moved = coded.decoder @ weight
    return np.maximum(difference, 0) * moved if signed else np.abs(difference * moved)


def strongest(values: Float[np.ndarray, "dict_size"], n: int) -> Int[np.ndarray, "m"]:
    """Returns the n latents of the largest effects above 0, or all that have one."""
    order = np.argsort(-values, kind="stable")[:n]
    return order[values[order] > 0]
