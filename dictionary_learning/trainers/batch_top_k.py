"""BatchTopK: k latents of each token, on average over a batch."""

import contextlib
from collections.abc import Generator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries import BatchTopKSAE, Coder, Trainable
from dictionary_learning.dictionaries._trainable import CoderSlice
from dictionary_learning.dictionaries.nonlinearities import BatchTopK, Nonlinearity
from dictionary_learning.ops._precision import upcast
from dictionary_learning.parallel import ALONE, Ranks, kth_largest
from dictionary_learning.trainers._base import TRAINERS
from dictionary_learning.trainers._batch import Batch, Loss, StepPart
from dictionary_learning.trainers._components import component
from dictionary_learning.trainers._sae_trainer import SAETrainer
from dictionary_learning.trainers._top_k_family import (
    TopKFamilyConfig,
    ranked_values,
    scheduled_k,
    smallest_of_batch,
    top_k_loss,
    update_thresholds_,
)

_SURPLUS = 1.25
"""Values of each rank that are looked at first, for each that it would keep by itself."""


@TRAINERS.register("batch_top_k")
class BatchTopKTrainer(SAETrainer):
    """Trains a dictionary that keeps the k * batch largest latents of a batch.

    The loss is TopK's (`TrainerTopK`). For inference, a threshold takes the place of the batch: the
    moving average of the smallest value that a batch keeps.
    Bussmann et al. 2024, https://arxiv.org/abs/2412.06410.
    """

    class Config(TopKFamilyConfig):
        """Settings of BatchTopK."""

    settings: Config
    spreads_latents = True
    annealed_k = component(scheduled_k)

    def nonlinearity(self) -> Nonlinearity:
        return BatchTopK(self.settings.k)

    def objective(self, batch: Batch) -> Loss:
        return top_k_loss(self, batch, self.annealed_k.now)

    def sharing(self, parts: Sequence[Batch]) -> contextlib.AbstractContextManager[object]:
        return batch_cut(self.dictionary, parts, self.annealed_k.now, self.ranks, self.latent_ranks)

    def selecting(self, coder: Coder, x: Tensor) -> contextlib.AbstractContextManager[object]:
        return batch_cut(coder, [Batch(x, x)], self.settings.k, latent_ranks=coder.latent_ranks)

    def after_step(self, parts: Sequence[StepPart]) -> None:
        update_thresholds_(self, self.settings, parts, smallest_of_batch)


@contextlib.contextmanager
def batch_cut(
    dictionary: Trainable, parts: Sequence[Batch], k: int, ranks: Ranks = ALONE, latent_ranks: Ranks = ALONE
) -> Generator[None, None, None]:
    """Makes the parts of a batch keep what the whole batch keeps, inside the `with` block.

    Args:
        dictionary: A dictionary with BatchTopK.
        parts: The parts of the batch.
        k: Latents per token, on average over the batch.
        ranks: The processes that have further parts.
        latent_ranks: The processes that have the other latents of these parts.
    """
    # a batch in one part finds its own cut
    coders = list(dictionary.coders()) if len(parts) > 1 or ranks.size > 1 or latent_ranks.size > 1 else []
    chosen = [(p, p.coder.nonlinearity) for p in coders if isinstance(p.coder.nonlinearity, BatchTopK)]
    for part, nonlinearity in chosen:
        nonlinearity.cut = _smallest_kept(part, [batch.x for batch in parts], k, ranks, latent_ranks)
    try:
        yield
    finally:
        for _, nonlinearity in chosen:
            nonlinearity.cut = None


@torch.no_grad()
def _smallest_kept(
    part: CoderSlice, parts: Sequence[Tensor], k: int, ranks: Ranks, latent_ranks: Ranks
) -> Float[Tensor, ""]:
    """Returns the (k * batch)-th largest value over all parts, by which latents are ranked."""
    n_own = sum(len(x) for x in parts)
    n_kept = k * ranks.total(n_own)
    is_alone = ranks.size == latent_ranks.size == 1
    # all that is kept could be in one part; of ranks, whose tokens or latents are as many and
    # alike, each has about its share, and more is looked at only if that was too little
    most = n_kept + 1 if is_alone else int(_SURPLUS * k * n_own / latent_ranks.size) + 1
    while True:
        found, is_all = _largest(part, parts, most)
        # a value was left out that may be kept, if all that were looked at are
        left_out = not is_alone and not is_all and bool(len(found))
        least = found.amin() if left_out else found.new_zeros(())
        found = torch.cat([found, found.new_zeros(1)])  # what follows where no more values are positive
        cut = kth_largest(found, n_kept, ranks, latent_ranks)
        # midway to the next one: the values are computed again, and may round otherwise
        following = kth_largest(found, n_kept + 1, ranks, latent_ranks)
        if is_alone:
            return cut.lerp(following, 0.5)
        is_short = int(left_out and bool(least > following))
        if not latent_ranks.total(ranks.total(is_short)):
            return cut.lerp(following, 0.5)
        most *= 2


def _largest(part: CoderSlice, parts: Sequence[Tensor], n: int) -> tuple[Tensor, bool]:
    """Returns the n largest values of each part or more, and whether these are all."""
    values, is_all = [torch.zeros(0, device=part.coder.device)], True
    for x in parts:
        most = min(-(-n // max(len(x), 1)), part.coder.dict_size)
        is_all &= most == part.coder.dict_size
        values.append(ranked_values(part.coder.kept(upcast(x[:, part.reads]), most), part).flatten())
    return torch.cat(values), is_all  # (candidates of all parts,)


__all__ = ["BatchTopKSAE", "BatchTopKTrainer"]
