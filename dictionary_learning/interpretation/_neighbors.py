"""The latents whose directions are nearest, over the whole dictionary, and a map of all of them."""

import importlib
import importlib.util
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning._border import checked
from dictionary_learning.dictionaries import Dictionary
from dictionary_learning.errors import ConfigError, MissingDependencyError
from dictionary_learning.interpretation._chosen import check_number
from dictionary_learning.interpretation._directions import Directions, Matrix
from dictionary_learning.interpretation._records import Neighbors

_MOST = 1 << 24
"""Elements of a block of similarities, 64 MB."""


@checked()
@torch.no_grad()
def nearest_latents(
    dictionary: Dictionary, n: int = 10, *, by: Matrix = "decoder", other: Dictionary | None = None
) -> Neighbors:
    """Returns for each latent the n nearest ones by cosine similarity, the nearest first.

    Args:
        dictionary: The dictionary.
        n: Neighbors of each latent, which is not its own.
        by: Whether directions that are written or that are read are compared.
        other: A dictionary whose latents are the neighbors, instead of those of the same.

    Raises:
        ConfigError: There are fewer latents, or the directions have different widths.
    """
    mine = Directions(dictionary, by)
    theirs = mine if other is None else Directions(other, by)
    if mine.width != theirs.width:
        raise ConfigError(
            f"Directions of width {mine.width} and {theirs.width} cannot be compared. Give dictionaries of one site."
        )
    most = theirs.n - (other is None)
    check_number(n, most, "other latents")
    candidates = theirs.all_unit_rows().to(mine.dictionary.device)  # (m, dim)
    size = max(_MOST // theirs.n, 1)
    found: list[Any] = []
    for start in range(0, mine.n, size):
        stop = min(start + size, mine.n)
        similarities = mine.unit_rows(start, stop) @ candidates.T  # (latents, m)
        if other is None:
            similarities.diagonal(start).fill_(-torch.inf)  # its own
        found.append(similarities.topk(n, dim=1))
    return Neighbors(torch.cat([f.indices for f in found]), torch.cat([f.values for f in found]))


@checked()
@torch.no_grad()
def latent_map(
    dictionary: Dictionary,
    method: Literal["auto", "umap", "pca"] = "auto",
    *,
    by: Matrix = "decoder",
    seed: int = 0,
) -> Float[Tensor, "dict_size 2"]:
    """Returns a place in the plane for each latent: near ones have similar directions.

    Args:
        dictionary: The dictionary.
        method: "umap" needs the package umap-learn, and compares by cosine; "pca" gives the two
            principal components of the unit directions; "auto" is UMAP where it is installed.
        by: Whether directions that are written or that are read are shown.
        seed: Of UMAP.

    Raises:
        MissingDependencyError: UMAP was asked for, and is not installed.
    """
    rows = Directions(dictionary, by).all_unit_rows()
    is_there = importlib.util.find_spec("umap") is not None
    if method == "umap" and not is_there:
        raise MissingDependencyError("umap-learn", "latent_map(method='umap')")
    # UMAP needs more points than neighbors
    if method == "umap" or (method == "auto" and is_there and len(rows) > _NEIGHBORS):
        umap: Any = importlib.import_module("umap")
        options = {"n_neighbors": min(_NEIGHBORS, len(rows) - 1), "min_dist": 0.05, "metric": "cosine"}
        placed = umap.UMAP(random_state=seed % 2**32, n_jobs=1, **options).fit_transform(rows.cpu().numpy())
        return torch.as_tensor(placed, dtype=torch.float32)
    return principal_components(rows)


_NEIGHBORS = 15
"""Of UMAP, its default."""


def principal_components(rows: Float[Tensor, "n dim"], n: int = 2) -> Float[Tensor, "n n_components"]:
    """Returns the first principal components of rows; the largest of each is positive."""
    centered = (rows - rows.mean(dim=0)).cpu().double()
    _, vectors = torch.linalg.eigh(centered.T @ centered)
    placed = centered @ vectors[:, -n:].flip(1)
    placed = torch.nn.functional.pad(placed, (0, n - placed.shape[1]))  # of width 1
    largest = placed.gather(0, placed.abs().argmax(dim=0, keepdim=True))
    return (placed * torch.where(largest < 0, -1.0, 1.0)).float()
