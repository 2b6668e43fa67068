"""One latent of each group."""

import torch
from jaxtyping import Float
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities.base import NONLINEARITIES
from dictionary_learning.dictionaries.nonlinearities.by_rule import SelectsByRule


@NONLINEARITIES.register("group_max", "groupmax")
class GroupMax(SelectsByRule):
    """Keeps the largest of relu(pre) in each of k groups of latents that stand one after another.

    Groups are equally large where k divides dict_size; else the first of them have one latent more.
    EleutherAI's sparsify has it where k divides dict_size.

    Args:
        k: how many groups there are, and so how many latents of a token may be non-zero.
    """

    def choose(self, pre: Float[Tensor, "*batch dict_size"], k: int) -> Tensor:
        return largest_of_groups(pre, k)

    def value(self, pre: Tensor) -> Tensor:
        return pre.relu()


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
