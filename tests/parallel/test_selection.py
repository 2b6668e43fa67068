"""What is kept of values that are spread over ranks, against one selection from all of them."""

import pytest
import torch

from dictionary_learning import training
from dictionary_learning.dictionaries import BatchTopKSAE
from dictionary_learning.latents import to_dense
from dictionary_learning.parallel import ALONE, kept_of_all
from dictionary_learning.trainers._batch import Batch
from dictionary_learning.trainers.batch_top_k import batch_cut
from tests.parallel.threads import run_threads

N_RANKS, N, LATENTS = 3, 6, 10


def rows() -> torch.Tensor:
    """Returns values of all latents, many of them equal."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(N, LATENTS, generator=generator) * 2).round().relu()


def sliced(x: torch.Tensor, rank: int) -> torch.Tensor:
    return x.tensor_split([7, 7], dim=1)[rank]  # unequal, and none on the second


@pytest.mark.parametrize("k", [1, 4, 9, LATENTS, 40])
def test_k_of_each_row_are_kept_and_they_are_the_largest(k):
    whole = rows()

    def kept():
        ranks = training.start()
        own = sliced(whole, ranks.rank)
        return kept_of_all(own, k, ranks)

    mask = torch.cat(run_threads(N_RANKS, kept), dim=1)
    assert (mask.sum(1) == min(k, LATENTS)).all()
    n = min(k, LATENTS)
    for row, of_row in zip(whole, mask, strict=True):
        assert torch.equal(row[of_row].sort().values, row.topk(n).values.sort().values)


def test_alone_all_candidates_are_kept():
    assert kept_of_all(torch.ones(2, 3), 3, ALONE).all()


@pytest.mark.parametrize("spread", ["tokens", "latents"])
def test_the_cut_of_a_batch_is_exact_where_one_rank_has_nearly_all_that_is_kept(spread):
    """Each rank first looks at little more than its share."""
    generator = torch.Generator().manual_seed(1)
    x, k, n_latents = torch.randn(64, 8, generator=generator), 2, 96
    dictionary = BatchTopKSAE(8, n_latents, k, generator=generator)
    if spread == "tokens":
        x[:32] *= 0.01
    else:
        dictionary.W_enc.data[:48] *= 0.01
    wanted = to_dense(dictionary.encode_sparse(x)) > 0

    def kept():
        ranks = training.start()
        own = x.chunk(2)[ranks.rank] if spread == "tokens" else x
        part = BatchTopKSAE(8, n_latents if spread == "tokens" else 48, k, generator=torch.Generator())
        of_rank = slice(None) if spread == "tokens" else slice(48 * ranks.rank, 48 * ranks.rank + 48)
        part.W_enc.data, part.W_dec.data = dictionary.W_enc.data[of_rank], dictionary.W_dec.data[of_rank]
        groups = (ranks, ALONE) if spread == "tokens" else (ALONE, ranks)
        with batch_cut(part, [Batch(own, own)], k, *groups):
            return to_dense(part.encode_sparse(own)) > 0

    found = torch.cat(run_threads(2, kept), dim=0 if spread == "tokens" else 1)
    assert torch.equal(found, wanted) and int(wanted.sum()) == 64 * k
