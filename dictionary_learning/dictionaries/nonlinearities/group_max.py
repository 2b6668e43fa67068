"""One latent of each group."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning import ops
from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES, Selects
from dictionary_learning.latents import SparseLatents


@NONLINEARITIES.register("group_max", "groupmax")
class GroupMax(Selects):
    """Keeps the largest of relu(pre) in each of k groups of latents that stand one after another.

    Groups are equally large where k divides dict_size; else the first of them have one latent more.
    EleutherAI's sparsify has it where k divides dict_size.

    Args:
        k: how many groups there are, and so how many latents of a token may be non-zero.
    """

    def forward(self, pre: Float[Tensor, "*batch dict_size"]) -> Float[Tensor, "*batch dict_size"]:
        indices = largest_of_groups(pre, self.k)
        return torch.zeros_like(pre).scatter(-1, indices, pre.gather(-1, indices).relu())

    def encode_sparse(
        self,
        x: Float[Tensor, "batch dim"],
        W_enc: Float[Tensor, "dict_size dim"],
        b_enc: Float[Tensor, "dict_size"],
        center: Float[Tensor, "dim"] | None,
        k: int | None,
    ) -> SparseLatents:
        n_groups = min(k or self.k, W_enc.shape[0])
        kept = ops.encode_where(x, W_enc, b_enc, lambda pre: largest_of_groups(pre, n_groups), center=center)
        assert isinstance(kept, SparseLatents)
        return SparseLatents(kept.values.relu(), kept.support)


def largest_of_groups(pre: Float[Tensor, "*batch dict_size"], n_groups: int) -> Tensor:
    """Returns the index of the largest of each group: (..., n_groups)."""
    size, n_larger = divmod(pre.shape[-1], n_groups)
    border = n_larger * (size + 1)
    parts = []
    for group, start, n in ((pre[..., :border], 0, size + 1), (pre[..., border:], border, size)):
        if group.shape[-1]:
            starts = torch.arange(group.shape[-1] // n, device=pre.device) * n + start
            parts.append(group.unflatten(-1, (-1, n)).argmax(-1) + starts)
    return torch.cat(parts, dim=-1)
