"""The largest latent of each group."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dictionary_learning.dictionaries.nonlinearities._base import NONLINEARITIES, RuleSelection


@NONLINEARITIES.register("group_max", "groupmax")
class GroupMax(RuleSelection):
    """Keeps the largest of relu(pre) in each of k groups of neighboring latents.

    Groups are equally large where k divides dict_size; else the first groups have one latent more.
    EleutherAI's sparsify has it where k divides dict_size.

    Args:
        k: number of groups, and so of latents of a token that may be non-zero.
    """

    is_masked_relu = True

    def choose(self, pre: Float[Tensor, "*batch dict_size"], k: int) -> Int[Tensor, "*batch k"]:
        size, n_larger = divmod(pre.shape[-1], k)
        border = n_larger * (size + 1)  # where groups with one latent more end
        parts: list[Tensor] = []
        for stretch, start, n in ((pre[..., :border], 0, size + 1), (pre[..., border:], border, size)):
            if stretch.shape[-1]:
                starts = torch.arange(stretch.shape[-1] // n, device=pre.device) * n + start
                parts.append(stretch.unflatten(-1, (-1, n)).argmax(-1) + starts)  # (..., groups)
        return torch.cat(parts, dim=-1)

    def value(self, pre: Tensor) -> Tensor:
        return pre.relu()
