"""How well batches are mixed: how many of a row's neighbors come from its own document."""

import torch
from jaxtyping import Int
from torch import Tensor


def expected_partners(document: Int[Tensor, "n"], batch_size: int) -> float:
    """Returns how many other rows of the same document a row meets in a batch, on average.

    (batch_size - 1) * sum_d n_d (n_d - 1) / (n (n - 1)),  n_d rows of document d among the n that batches are drawn from at random

    Rows whose document is not known (-1) are left out. Lower is better: 0 would be rows of different documents only.

    Args:
        document: the document of each row that batches are drawn from.
        batch_size: rows in a batch.
    """
    known = document[document >= 0]
    n = len(known)
    if n < 2:
        return 0.0
    counts = torch.unique(known, return_counts=True)[1].double()
    return (batch_size - 1) * float((counts * (counts - 1)).sum()) / (n * (n - 1))
